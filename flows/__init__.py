"""Prefect flows. They call DVC for the stages and do nothing else themselves."""

from pd_core.settings import telemetry_off

telemetry_off()  # Prefect reads its settings when it is imported
