"""Metrics, cross-validation, baselines and tests of significance."""
