"""Data sets, their labels and their fingerprints: the inputs of the stage `prepare`."""
