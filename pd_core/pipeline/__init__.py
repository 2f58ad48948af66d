"""From params.yaml to a stage; DVC, git and the environment."""
