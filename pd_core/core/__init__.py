"""Errors, files with checksums, typed configurations and enums that every other room uses."""
