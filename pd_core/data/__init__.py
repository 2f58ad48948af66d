"""Data sets: what they are (catalogue), how they are read, split and turned into tensors."""
