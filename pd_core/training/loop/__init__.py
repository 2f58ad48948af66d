"""The one training loop, with exact resume and cached features."""
