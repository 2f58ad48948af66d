"""MLflow tracking and registry, export, serving and drift."""
