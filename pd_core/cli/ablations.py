"""The verbs of `make ablations`; they run in the repository's root, as all others do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from pd_core.pipeline.ablations import AblationParams, load_ablations
from pd_core.pipeline.settings import compute_with, load_settings
from pd_core.pipeline.stages.params import DATA, Params

FOLDER = Path("ablations")
BASES, RESULTS = FOLDER / DATA / "base", FOLDER / DATA / "results"
REPORT = Path("reports") / FOLDER

app = typer.Typer(help="The paper's ablations on the embedded benchmark.")


@dataclass(frozen=True)
class _Setting:
    params: AblationParams
    profile: Params

    @property
    def computing(self) -> dict[str, Any]:
        """Seeds, device and folders, for the functions that run stages."""
        settings = load_settings()
        return {
            "seeds": self.params.seeds,
            "device": settings.device or self.profile.run.device,
            "data_root": settings.data_root or DATA / "raw",
            "features": DATA / "features",
        }


@app.command()
def base(dataset: Annotated[str, typer.Argument(show_default=False)]) -> None:
    """Stage: few-shot lists, tuned teacher and class vectors of a data set, for every seed."""
    setting = _load()
    from pd_core.pipeline import ablations

    params = setting.params.for_dataset(setting.profile, dataset)
    ablations.make_base(BASES / dataset, params, **setting.computing)


@app.command()
def variant(name: Annotated[str, typer.Argument(show_default=False)]) -> None:
    """Stage: run a variant on every data set with every seed."""
    setting = _load()
    changed = setting.params.variant(name).changed
    from pd_core.pipeline import ablations

    datasets = [
        setting.params.for_dataset(setting.profile, dataset, name)
        for dataset in setting.params.datasets
    ]
    console = Console(stderr=True)
    ablations.run_variant(
        BASES,
        RESULTS / name,
        datasets,
        changed=changed,
        on_run=lambda dataset, seed: console.print(f"{name}: {dataset}, seed {seed}"),
        **setting.computing,
    )


@app.command()
def report() -> None:
    """Stage: put all variants beside the paper's figures."""
    setting = _load()
    from pd_core.reporting import ablation_report

    ablation_report.run(
        RESULTS,
        REPORT,
        tables=[table.table() for table in setting.params.tables],
        datasets=setting.params.datasets,
        seeds=setting.params.seeds,
    )


@app.command()
def show() -> None:
    """Print the tables."""
    from pd_core.core.artifacts import read_json
    from pd_core.reporting import ablation_report

    summary = read_json(REPORT / "summary.json", what="report", remedy="run `make ablations`")
    Console().print(ablation_report.table(summary))


def _load() -> _Setting:
    params, profile = load_ablations(FOLDER / "params.yaml")
    compute_with(profile.run.threads)
    return _Setting(params, profile)
