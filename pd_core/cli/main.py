"""The command line: one verb a stage, and one for each thing a user does besides.

Every verb reads `params.yaml` in the current folder, calls one function of the library and records
the run in MLflow. What a user can put right ends in one line and exit status 2.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from pd_core.cli import (
    ablations,
    benchmark,
    compare,
    data,
    embedded,
    fetch,
    models,
    page,
    protocols,
    registry,
    serve,
)
from pd_core.cli.common import Setting, note, register, setting_of
from pd_core.cli.doctor import command as cli_doctor
from pd_core.core.errors import BadParams, Interrupted, PdError
from pd_core.data.loading.splits import Protocol
from pd_core.pipeline import code_hash, signals
from pd_core.pipeline import processes as launch
from pd_core.pipeline.progress import Reporter
from pd_core.pipeline.redaction import masked, masked_tracebacks
from pd_core.pipeline.settings import compute_with, load_settings, telemetry_off
from pd_core.pipeline.stages import jobs
from pd_core.pipeline.stages.layout import Job, inputs, output, tuning_of_student
from pd_core.pipeline.stages.params import DATA, PARAMS, load_params

if TYPE_CHECKING:
    from pd_core.mlops.tracking import DataInput, StageRun

REPORTS = Path("reports")
CODE = DATA / "code"
DVCS_ARGUMENTS = {"allow_extra_args": True, "ignore_unknown_options": True}

app = typer.Typer(
    help="PromptKD: distil a large CLIP into a small one on unlabelled pictures.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(embedded.app, name="embedded")
app.add_typer(models.app)
app.add_typer(serve.app)
app.add_typer(cli_doctor.app)
app.add_typer(ablations.app, name="ablation")
app.add_typer(data.app, name="data")
app.add_typer(fetch.weights, name="weights")
app.add_typer(registry.app, name="registry")
app.add_typer(models.app)
app.add_typer(page.app)
app.add_typer(benchmark.app)
app.add_typer(compare.app)
app.add_typer(protocols.app, name="protocols")

Name = Annotated[str, typer.Argument(help="A data set of params.yaml.", show_default=False)]
Seed = Annotated[
    int | None,
    typer.Option(help="Instead of run.seed; outputs go to <data set>-<seed>.", show_default=False),
]
Source = Annotated[
    str | None,
    typer.Option(
        help="The data set whose teacher is used; outputs go to <data set>-from-<source>.",
        show_default=False,
    ),
]
InProtocol = Annotated[
    Protocol | None,
    typer.Option(
        "--protocol",
        help="As protocols/params.yaml has it; outputs go to protocols/data.",
        show_default=False,
    ),
]


@app.command()
def code() -> None:
    """Stage: hash the code behind the other stages, one file a room of the package."""
    code_hash.write(CODE)


@app.command()
def prepare(name: Name, seed: Seed = None, protocol: InProtocol = None) -> None:
    """Stage: draw the few-shot split and list the unlabelled pictures."""
    setting = setting_of(name, seed, protocol=protocol)
    with _watched("prepare", setting, "pictures") as (_, report):
        jobs.prepare(setting.job, on_progress=report.progress)


@app.command()
def teacher(name: Name, seed: Seed = None, protocol: InProtocol = None) -> None:
    """Stage: tune the teacher's prompts on the few labels."""
    setting = setting_of(name, seed, protocol=protocol)
    with _training("teacher", setting) as (_, observers):
        jobs.teacher(setting.job, **observers)


@app.command("class-vectors")
def class_vectors(
    name: Name, seed: Seed = None, source: Source = None, protocol: InProtocol = None
) -> None:
    """Stage: compute the teacher's text features of all classes, once."""
    setting = setting_of(name, seed, source, protocol)
    compute_with(setting.job.params.run.threads)
    with _watched("class_vectors", setting, "classes") as (_, report):
        jobs.class_vectors(setting.job, on_progress=report.progress)


@app.command()
def student(
    name: Name, seed: Seed = None, source: Source = None, protocol: InProtocol = None
) -> None:
    """Stage: distil the student on the unlabelled pictures."""
    setting = setting_of(name, seed, source, protocol)
    with _training("student", setting) as (_, observers):
        jobs.student(setting.job, **observers)


@app.command()
def evaluate(
    name: Name, seed: Seed = None, source: Source = None, protocol: InProtocol = None
) -> None:
    """Stage: measure student and teacher on test pictures; register the profile's student."""
    setting = setting_of(name, seed, source, protocol)
    job = setting.job
    compute_with(job.params.run.threads)
    with _watched("evaluate", setting) as (run, report):
        metrics = jobs.evaluate(job, on_progress=report.progress, on_note=note)
        run.log_metrics(metrics)
        run.log_file(job.evaluation / "predictions.json")
        run.log_texts(lambda: _figures(job))
    if protocol is None:
        register(setting, run.run_id)


@app.command("tuned-student")
def tuned_student(name: Name, seed: Seed = None) -> None:
    """Stage: the paper's main baseline, prompts tuned on the student's own CLIP."""
    setting = setting_of(name, seed)
    tuning_of_student(setting.job)  # refuses a data set without it
    with _training("tuned_student", setting) as (run, observers):
        run.log_metrics(jobs.tuned_student(setting.job, **observers))


@app.command(context_settings=DVCS_ARGUMENTS, add_help_option=False)
def repro(context: typer.Context) -> None:
    """Run `dvc repro` with its own arguments, whole after a kill at any moment."""
    from pd_core.pipeline import dvc

    dvc.end_with_parent()
    dvc.prepare(load_settings(), dvc.root())
    raise typer.Exit(dvc.run(context.args, DATA))


@app.command(context_settings=DVCS_ARGUMENTS, add_help_option=False)
def push(context: typer.Context) -> None:
    """Run `dvc push --run-cache` with its own arguments: other machines need not compute again."""
    from pd_core.pipeline import dvc

    dvc.end_with_parent()
    dvc.prepare(load_settings(), dvc.root())
    raise typer.Exit(dvc.push(context.args))


@app.command()
def report() -> None:
    """Stage: put all data sets' results into one summary, table and figure."""
    params = load_params(PARAMS)
    settings = load_settings()
    from pd_core.mlops import tracking
    from pd_core.reporting import report as stage

    folder = REPORTS / params.profile.name
    with tracking.stage_run(
        tracking.open_store(Path(params.profile.root), settings.mlflow_tracking_uri),
        profile=params.profile.name,
        dataset="",
        stage="report",
        params={"datasets": list(params.datasets)},
        deps=[*code_hash.write(CODE, "report"), DATA / "evaluate"],
        outs=[folder],
        seed=params.run.seed,
        protocol=params.prepare.protocol,
        experiment=settings.mlflow_experiment,
    ) as run:
        stage.run(
            DATA / "evaluate",
            DATA / "prepare",
            folder,
            profile=params.profile.name,
            datasets=list(params.datasets),
            baselines=list(params.tuned_student),
        )
        run.log_metrics(stage.read_summary(folder)["average"])
        run.log_file(folder)


@app.command()
def show() -> None:
    """Print the result table, and where to look further."""
    params = load_params(PARAMS)
    from pd_core.reporting import report as stage

    folder = REPORTS / params.profile.name
    console = Console()
    console.print(stage.table(stage.read_summary(folder), stage.read_titles(DATA / "prepare")))
    console.print(f"Report   {folder / 'summary.md'}, {folder / 'summary.png'}")
    if sys.prefix not in (sys.base_prefix, os.environ.get("VIRTUAL_ENV")):
        console.print(f"Shell    `source {_short(Path(sys.prefix))}/bin/activate`, then")
    console.print("Page     `promptkd page`")
    console.print(f"MLflow   {_mlflow_page()}")


@contextmanager
def _training(stage: str, setting: Setting) -> Iterator[tuple[StageRun, jobs.Observers]]:
    """Surround a training: processes, threads, record, progress, what tells it to save and end."""
    computing = setting.job.params.run
    if computing.processes > 1 and launch.member() is None:
        command = [sys.executable, "-m", "pd_core", *sys.argv[1:]]
        raise typer.Exit(launch.together(command, computing.processes))
    compute_with(computing.threads)
    with ExitStack() as stack:
        interrupted = stack.enter_context(signals.postponed())
        if stack.enter_context(_joined(setting.job.device, computing.processes)) > 0:
            from pd_core.mlops.tracking import StageRun

            yield StageRun(), {"interrupted": interrupted}
            return
        run, report = stack.enter_context(_watched(stage, setting))
        yield (
            run,
            {
                "interrupted": interrupted,
                "on_epoch": report.epoch,
                "on_progress": report.progress,
                "on_loss": report.loss,
                "on_note": note,
            },
        )


@contextmanager
def _watched(
    stage: str, setting: Setting, unit: str = "steps"
) -> Iterator[tuple[StageRun, Reporter]]:
    """Surround a stage: its record, and its progress, counted in a unit."""
    title = f"{stage.replace('_', ' ')} {setting.label(stage)}"
    with _tracked(stage, setting) as run, Reporter(title, unit, record=run) as report:
        yield run, report


@contextmanager
def _joined(device: str, processes: int) -> Iterator[int]:
    """Join those that train together, if this process was started as one; say which one it is."""
    member = launch.member()
    if member is None:
        yield 0
        return
    if member.processes != processes:
        raise BadParams(
            f"{PARAMS}: run.processes = {processes}, but {member.processes} were started; make them"
            " equal"
        )
    launch.end_with_parent()
    from pd_core.training.loop import distributed

    try:
        with distributed.joined(device, **asdict(member)):
            yield member.number
    except distributed.LostProcess:
        raise typer.Exit(launch.LOST) from None


@contextmanager
def _tracked(stage: str, setting: Setting) -> Iterator[StageRun]:
    """Record what the block does as an MLflow run; refuse a dead server before it starts."""
    from pd_core.mlops import tracking

    job, settings = setting.job, setting.settings
    out = output(job, stage)
    store = tracking.open_store(setting.root, settings.mlflow_tracking_uri)
    block = getattr(job.params, stage)
    with tracking.stage_run(
        store,
        profile=setting.profile,
        dataset=setting.label(stage),
        stage=stage,
        params={
            "run": job.params.run.model_dump(mode="json"),
            stage: block.model_dump(mode="json"),
        },
        deps=[*code_hash.write(setting.code, stage), *inputs(job, stage)],
        outs=[out],
        seed=job.seed,
        protocol=job.params.prepare.protocol,
        inputs=_data_inputs(stage, job),
        experiment=settings.mlflow_experiment,
    ) as run:
        yield run
        if (history := out / "history.json").is_file():
            run.log_file(history)


def _figures(job: Job) -> dict[str, str]:
    from pd_core.reporting.page import figures

    return figures.of_evaluation(job)


def _data_inputs(stage: str, job: Job) -> list[DataInput]:
    """Return the data set that a stage reads: what `prepare` made of it, or its fingerprint."""
    from pd_core.mlops.tracking import DataInput

    name = job.params.name
    if stage == "prepare":
        return [DataInput(name, job.fingerprint, "preparation")] if job.fingerprint else []
    return [DataInput(name, job.prepared, "evaluation" if stage == "evaluate" else "training")]


def _short(path: Path) -> Path:
    """Return a path as seen from this folder, if it is below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _mlflow_page() -> str:
    from pd_core.mlops import tracking

    uri = load_settings().mlflow_tracking_uri
    if uri and uri.startswith("http"):
        return masked(uri)
    return f"`mlflow ui --backend-store-uri {masked(uri or 'sqlite:///' + tracking.DATABASE)}`"


def _spare_the_collector() -> None:
    """Look for garbage less often, and not at the end.

    Importing torch makes a million objects that all stay: looking through them after every 700
    takes a third of a stage's start, and once more a second at its end.
    """
    gc.set_threshold(50_000, 10, 10)
    atexit.register(gc.freeze)


@masked_tracebacks()
def main() -> None:
    """Run the command line; errors of the user's end in one line and status 2."""
    _spare_the_collector()
    telemetry_off()
    signals.end_at_once()
    try:
        app()
    except Interrupted as stop:
        sys.stderr.write(f"stopped: {stop}\n")
        raise SystemExit(signals.EXIT_STATUS) from None
    except PdError as error:
        sys.stderr.write(f"error: {masked(str(error))}\n")
        raise SystemExit(2) from None
    except BrokenPipeError:
        raise SystemExit(1) from None
