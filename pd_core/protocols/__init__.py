"""The four protocols over several seeds: what is run, and what is reported of it."""
