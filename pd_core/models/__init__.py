"""Frozen CLIP towers and what is trained on top of them."""
