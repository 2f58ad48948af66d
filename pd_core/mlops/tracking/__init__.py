"""MLflow tracking: each stage is one run, with everything needed to trace its outputs.

Runs are nested: a profile's experiment holds one run per commit (the benchmark), below it one per
data set, below that one per stage. A stage's run is there from its start, and its numbers arrive
while it works. Nothing here touches a stage's outputs, and measured times appear nowhere else.
"""

from pd_core.mlops.tracking.recorder import DataInput, StageInfo, StageRun, stage_run
from pd_core.mlops.tracking.store import ARTIFACTS, DATABASE, client, experiment_id, open_store

__all__ = [
    "ARTIFACTS",
    "DATABASE",
    "DataInput",
    "StageInfo",
    "StageRun",
    "client",
    "experiment_id",
    "open_store",
    "stage_run",
]
