"""Prepared lists, and images as batches: the inputs of training and evaluation."""
