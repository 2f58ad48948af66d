"""Errors, files with checksums and enums that every other room uses."""
