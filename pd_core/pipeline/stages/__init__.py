"""From `params.yaml` to a stage: its values, its paths, its checkpoints and cache."""
