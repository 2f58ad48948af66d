"""MLflow's model registry: what it holds, and what may become the champion."""
