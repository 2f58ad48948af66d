"""Rehearsal of the paper's profile without its data: `python -m benchmarks.rehearsal`.

Copies of the data sets with few images each, random weights, every stage of every protocol with
small models, and a measurement of the real ones.
"""
