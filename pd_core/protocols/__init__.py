"""The four protocols over several seeds: what runs with which numbers, and what came of it."""
