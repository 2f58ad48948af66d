"""Where the stages of a protocol read and write: a folder a protocol, and one for the sources."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pd_core.data.splits import Protocol
from pd_core.layout import Job
from pd_core.params import DATA, DatasetParams
from pd_core.protocols.params import FOLDER, ProtocolsParams

RESULTS = FOLDER / DATA
EVALUATIONS = RESULTS / "evaluate"
"""In one folder for all protocols, which the report depends on."""
SOURCE = "source"
REPORT = Path("reports") / FOLDER
"""What came of it, seen from the profile's folder."""


def job(
    params: ProtocolsParams,
    protocol: Protocol,
    mine: DatasetParams,
    *,
    seed: int,
    device: str,
    data_root: Path,
    fingerprint: Path | None,
    features: Path | None,
) -> Job:
    """Lay a job out for one data set and seed of a protocol.

    Args:
        params: of the protocols.
        protocol: which one.
        mine: parameters of the data set, the protocol's changes in them.
        seed: of the draws and the training.
        device: where to compute.
        data_root: folder that holds the photo data sets.
        fingerprint: of the data set's pictures; None to compare them with none.
        features: folder for what frozen towers say; None to keep nothing.
    """
    lends = params.is_source(protocol, mine.name)
    borrowed = params.source.dataset if protocol.has_source and not lends else None
    part = SOURCE if lends else str(protocol)
    laid = Job.at(
        RESULTS / part,
        mine,
        seed=seed,
        device=device,
        data_root=data_root,
        fingerprint=fingerprint,
        checkpoints=RESULTS / "checkpoints" / part,
        features=features,
        suffix=f"-{seed}",
        source=borrowed,
    )
    teacher = RESULTS / (SOURCE if borrowed else part) / "teacher" / laid.teacher.name
    return replace(laid, teacher=teacher, evaluation=EVALUATIONS / part / laid.evaluation.name)
