"""What the stage `prepare` reads: data sets, their labels, their fingerprints."""
