"""Predictions for many image files: which files, their classes, and the file of results."""
