"""Mapping from `params.yaml` to stages: configurations, paths, checkpoints and caches."""
