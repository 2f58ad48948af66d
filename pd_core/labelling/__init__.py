"""Choice of images to label next, new labels, and accuracy against their number."""
