"""Entry point of `promptkd`, the commands that run stages, and the wrappers of DVC.

A stage's command reads `params.yaml` in the current folder, calls one function of the library and
records the run in MLflow. Errors that users can correct end in one line and exit status 2.
"""

from __future__ import annotations

import atexit
import gc
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING, Annotated

import typer

from pd_core.cli.common import Reporter, Setting, note, register, setting_of
from pd_core.core.errors import BadParams, Interrupted, PdError, unknown
from pd_core.core.hooks import Hooks
from pd_core.data.loading.splits import Protocol
from pd_core.pipeline import code_hash, experiment, processes
from pd_core.pipeline.processes import Worker
from pd_core.pipeline.redaction import masked, masked_tracebacks
from pd_core.pipeline.settings import compute_with, load_settings, telemetry_off
from pd_core.pipeline.stages import jobs
from pd_core.pipeline.stages.jobs import Job, inputs, output, tuning_of_student
from pd_core.pipeline.stages.params import DATA, PARAMS

if TYPE_CHECKING:
    from pd_core.mlops.tracking.recorder import DataInput, StageRun

DVCS_ARGUMENTS = {"allow_extra_args": True, "ignore_unknown_options": True}

app = typer.Typer(
    help="PromptKD: distil a large CLIP into a small one on unlabelled images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(help="Data set in params.yaml.", show_default=False)]
Seed = Annotated[
    int | None,
    typer.Option(
        help="Random seed; outputs go to <data set>-<seed> (default: run.seed).",
        show_default=False,
    ),
]
Source = Annotated[
    str | None,
    typer.Option(
        help="Data set whose teacher is used; outputs go to <data set>-from-<source>.",
        show_default=False,
    ),
]
InProtocol = Annotated[
    Protocol | None,
    typer.Option(
        "--protocol",
        help="Protocol in protocols/params.yaml; outputs go to protocols/data.",
        show_default=False,
    ),
]


@app.command()
def code() -> None:
    """Stage: hash the code that the other stages depend on."""
    experiment.link_ignored(DATA / "raw")
    code_hash.write(DATA / code_hash.CODE)


@app.command()
def prepare(name: Name, seed: Seed = None, protocol: InProtocol = None) -> None:
    """Stage: draw the few-shot split and list the unlabelled images."""
    run_stage("prepare", setting_of(name, seed, protocol=protocol))


@app.command()
def teacher(name: Name, seed: Seed = None, protocol: InProtocol = None) -> None:
    """Stage: tune the teacher's prompts on the few-shot labels."""
    run_stage("teacher", setting_of(name, seed, protocol=protocol))


@app.command("class-vectors")
def class_vectors(
    name: Name, seed: Seed = None, source: Source = None, protocol: InProtocol = None
) -> None:
    """Stage: compute the teacher's text features of all classes."""
    run_stage("class_vectors", setting_of(name, seed, source, protocol))


@app.command()
def student(
    name: Name, seed: Seed = None, source: Source = None, protocol: InProtocol = None
) -> None:
    """Stage: distil the student on the unlabelled images."""
    run_stage("student", setting_of(name, seed, source, protocol))


@app.command()
def evaluate(
    name: Name, seed: Seed = None, source: Source = None, protocol: InProtocol = None
) -> None:
    """Stage: evaluate student and teacher on the test images, and register the student."""
    run_stage("evaluate", setting_of(name, seed, source, protocol))


@app.command("cross-validate")
def cross_validate(name: Name, seed: Seed = None) -> None:
    """Stage: estimate the accuracy by cross-validation, for data without test labels."""
    run_stage("cross_validate", setting_of(name, seed))


@app.command("tuned-student")
def tuned_student(name: Name, seed: Seed = None) -> None:
    """Stage: tune prompts on the student's own CLIP, the paper's main baseline."""
    run_stage("tuned_student", setting_of(name, seed))


def run_stage(stage: str, setting: Setting) -> None:
    """Run a stage of a data set, show its progress and record it in MLflow."""
    job = setting.job
    match stage:
        case "prepare":
            with _recorded(stage, setting, "images") as (_, report):
                jobs.prepare(job, on_progress=report.progress, on_note=note)
        case "teacher":
            _train(stage, setting, jobs.teacher)
        case "class_vectors":
            compute_with(job.params.run.threads)
            with _recorded(stage, setting, "classes") as (_, report):
                jobs.class_vectors(job, on_progress=report.progress)
        case "student":
            _train(stage, setting, jobs.student)
        case "tuned_student":
            tuning_of_student(job)  # refuses a data set without it
            _train(stage, setting, jobs.tuned_student)
        case "evaluate":
            _evaluate(setting)
        case "cross_validate":
            compute_with(job.params.run.threads)
            with _recorded(stage, setting) as (run, _):
                run.log_metrics(jobs.cross_validate(job, Hooks(on_note=note)))
        case _:
            raise unknown("stage", stage, code_hash.STAGES)


def _evaluate(setting: Setting) -> None:
    job = setting.job
    compute_with(job.params.run.threads)
    with _recorded("evaluate", setting) as (run, report):
        metrics = jobs.evaluate(job, Hooks(on_progress=report.progress, on_note=note))
        run.log_metrics(metrics)
        run.log_file(job.evaluation / "predictions.json")
        run.log_texts(lambda: _figures(job))
    if setting.protocol is None:
        _register(setting, run.run_id)


def _register(setting: Setting, run_id: str | None) -> None:
    """Register a student; a store that refuses it is a warning, and costs no result."""
    from pd_core.mlops.tracking import StoreRefuses

    try:
        register(setting, run_id)
    except StoreRefuses as error:
        name = setting.job.student.name
        note(
            f"warning: the student is not registered, {error}; then `promptkd registry register "
            f"{name}` registers it"
        )


@app.command(context_settings=DVCS_ARGUMENTS, add_help_option=False)
def repro(context: typer.Context) -> None:
    """Run `dvc repro` with its own arguments, safely for kills and parallel runs."""
    from pd_core.cli import fork_server
    from pd_core.pipeline import dvc

    dvc.end_with_parent()
    settings = load_settings()
    dvc.prepare(settings, dvc.root())
    with fork_server.for_profile(settings):
        status = dvc.run(context.args, DATA)
    raise typer.Exit(status)


@app.command(context_settings=DVCS_ARGUMENTS, add_help_option=False)
def push(context: typer.Context) -> None:
    """Run `dvc push --run-cache` with its own arguments, to share results."""
    from pd_core.pipeline import dvc

    dvc.end_with_parent()
    dvc.prepare(load_settings(), dvc.root())
    raise typer.Exit(dvc.push(context.args))


@cache
def add_groups() -> None:
    """Add the other commands, in the order of `promptkd --help`."""
    from pd_core.cli import (
        data,
        experiments,
        labelling,
        model_list,
        models,
        project,
        registry,
        reports,
    )
    from pd_core.cli.benchmark import benchmark
    from pd_core.cli.doctor import doctor
    from pd_core.cli.export import export
    from pd_core.cli.predict import predict
    from pd_core.cli.rehearse import rehearse
    from pd_core.cli.tune import tune

    app.command()(project.new)
    app.command()(reports.report)
    app.command()(reports.show)
    app.command()(tune)
    app.command()(rehearse)
    app.add_typer(experiments.embedded, name="embedded")
    app.add_typer(models.app)
    app.command()(predict)
    app.command()(models.serve)
    app.command()(export)
    app.command()(doctor)
    app.add_typer(experiments.ablation, name="ablation")
    data.app.command()(project.add)
    data.app.command()(labelling.label)
    app.add_typer(data.app, name="data")
    app.add_typer(data.weights, name="weights")
    app.add_typer(model_list.app, name="models")
    app.add_typer(registry.app, name="registry")
    app.command()(labelling.suggest)
    app.command()(labelling.curve)
    app.command()(reports.page)
    app.command("offline-plots")(reports.offline_plots)
    app.command()(benchmark)
    app.command()(reports.compare)
    app.add_typer(experiments.protocol, name="protocols")


def _is_stage(arguments: Sequence[str]) -> bool:
    """Return True for a command of this file, which does not need the others imported."""
    commands = {
        info.name or info.callback.__name__ for info in app.registered_commands if info.callback
    }
    return bool(arguments) and arguments[0] in commands


def _train(stage: str, setting: Setting, work: Callable[[Job, Hooks], jobs.Metrics | None]) -> None:
    """Run a training in `run.processes` ranks, of which rank 0 records it."""
    job = setting.job
    world_size = job.params.run.processes
    worker = processes.this_worker()
    if world_size > 1 and worker is None:
        command = [sys.executable, "-m", "pd_core", *sys.argv[1:]]
        raise typer.Exit(processes.launch(command, world_size))
    compute_with(job.params.run.threads)
    with processes.postponed() as interrupted, _process_group(worker, job.device, world_size):
        if worker is not None and worker.rank > 0:
            work(job, Hooks(interrupted))
            return
        with _recorded(stage, setting) as (run, report):
            hooks = Hooks(interrupted, report.epoch, report.progress, report.loss, note)
            metrics = work(job, hooks)
            if metrics is not None:
                run.log_metrics(metrics)


@contextmanager
def _process_group(worker: Worker | None, device: str, world_size: int) -> Iterator[None]:
    """Join the process group of the training, if this process was started as a worker."""
    if worker is None:
        yield
        return
    if worker.world_size != world_size:
        raise BadParams(
            f"{PARAMS}: run.processes = {world_size}, but {worker.world_size} were started; make"
            " them equal"
        )
    processes.end_with_launcher()
    from pd_core.training.loop import distributed

    try:
        with distributed.process_group(device, **asdict(worker)):
            yield
    except distributed.LostProcess:
        raise typer.Exit(processes.LOST) from None


@contextmanager
def _recorded(
    stage: str, setting: Setting, unit: str = "steps"
) -> Iterator[tuple[StageRun, Reporter]]:
    """Show a stage's progress, counted in a unit, and record the stage as an MLflow run.

    Raises:
        PdError: the tracking server does not answer; the stage has not started.
    """
    from pd_core.mlops.tracking import recorder

    job = setting.job
    out, label = output(job, stage), setting.label(stage)
    block = getattr(job.params, "evaluate" if stage == "cross_validate" else stage)
    info = recorder.StageInfo(
        profile=setting.profile,
        dataset=label,
        stage=stage,
        params={
            "run": job.params.run.model_dump(mode="json"),
            stage: block.model_dump(mode="json"),
        },
        deps=inputs(job, stage),
        code=code_hash.file_hashes(stage, setting.code),
        outs=[out],
        seed=job.seed,
        protocol=job.params.prepare.protocol,
        inputs=_data_inputs(stage, job),
        experiment=setting.settings.mlflow_experiment,
    )
    with recorder.stage_run(setting.open_store(), info) as run:
        title = f"{stage.replace('_', ' ')} {label}"
        with Reporter(title, unit, record=run, also=setting.on_progress) as report:
            yield run, report
        if (history := out / "history.json").is_file():
            run.log_file(history)


def _figures(job: Job) -> dict[str, str]:
    from pd_core.reporting import page_dataset

    return page_dataset.of_evaluation(job)


def _data_inputs(stage: str, job: Job) -> list[DataInput]:
    """Return the data set that a stage reads: its prepared folder, or its fingerprint."""
    from pd_core.mlops.tracking.recorder import DataInput

    name = job.params.name
    if stage == "prepare":
        return [DataInput(name, job.fingerprint, "preparation")] if job.fingerprint else []
    return [DataInput(name, job.prepared, "evaluation" if stage == "evaluate" else "training")]


def tune_garbage_collector() -> None:
    """Run the garbage collector less often, and not at exit.

    Importing torch makes a million permanent objects: traversing them after every 700 allocations
    takes a third of a stage's start, and another second at its end.
    """
    gc.set_threshold(50_000, 10, 10)
    atexit.register(gc.freeze)


@masked_tracebacks()
def main() -> None:
    """Run the command line; users' errors end in one line and exit status 2."""
    tune_garbage_collector()
    telemetry_off()
    processes.end_at_once()
    if not _is_stage(sys.argv[1:]):
        add_groups()
    try:
        app()
    except Interrupted as stop:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one
        sys.stderr.write(f"stopped: {stop}\n")
        raise SystemExit(processes.EXIT_STATUS) from None
    except PdError as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as the launcher sends it to other ranks
        sys.stderr.write(f"error: {masked(str(error))}\n")
        raise SystemExit(2) from None
    except BrokenPipeError:
        raise SystemExit(1) from None
