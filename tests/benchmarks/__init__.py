"""What the steps cost, beside a plain path that does what the original does: `make bench`."""
