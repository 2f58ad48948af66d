"""Made-up results of the four protocols, as the stages write them."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import harmonic_mean

import numpy as np

from pd_core.data.loading.splits import Protocol
from pd_core.reporting.results import MODELS

SEEDS = (1, 2, 3)
SOURCE = "latin"
DATASETS = {
    Protocol.BASE_TO_NOVEL: ("arrows", "greek", "latin"),
    Protocol.CROSS_DATASET: ("arrows", "greek"),
    Protocol.DOMAIN_GENERALISATION: ("latin_chalk", "latin_neon", "latin_stamp", "latin_blueprint"),
    Protocol.ALL_CLASSES: ("latin",),
}
LEVELS = dict(zip(MODELS, (45.0, 55.0, 72.0, 70.0), strict=True))

Scores = dict[str, float]
Run = tuple[Protocol, str, int]  # protocol, data set, seed


def runs() -> Iterator[Run]:
    """Yield every run."""
    for protocol, names in DATASETS.items():
        for name in names:
            for seed in SEEDS:
                yield protocol, name, seed


def path_of(evaluations: Path, run: Run) -> Path:
    """Return where a run's metrics lie."""
    protocol, name, seed = run
    source = f"-from-{SOURCE}" if protocol.has_source else ""
    return evaluations / protocol / f"{name}{source}-{seed}" / "metrics.json"


def put(evaluations: Path, run: Run, content: Mapping[str, Scores]) -> None:
    """Write a run's metrics."""
    path = path_of(evaluations, run)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def made_up(protocol: Protocol, generator: np.random.Generator) -> dict[str, Scores]:
    """Return metrics near `LEVELS`, of the protocol's keys."""
    content = {}
    for who, level in LEVELS.items():
        base, novel = (level + generator.normal((4, -4), 0.6)).round(4).tolist()
        whole = round((base + novel) / 2, 4)
        halves = {"base": base, "novel": novel, "hm": round(harmonic_mean([base, novel]), 4)}
        content[who] = (
            {**halves, "all": whole} if protocol is Protocol.BASE_TO_NOVEL else {"all": whole}
        )
    return content


def write_all(evaluations: Path) -> dict[Run, dict[str, Scores]]:
    """Write every run's metrics; return them."""
    generator = np.random.default_rng(0)
    written = {run: made_up(run[0], generator) for run in runs()}
    for run, content in written.items():
        put(evaluations, run, content)
    return written
