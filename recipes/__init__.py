"""One-off programs behind files that ship with the package; run from a clone of the project."""
