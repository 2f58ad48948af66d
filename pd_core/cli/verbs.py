"""The command line: one verb a stage, and one for each thing a user does besides.

Every verb reads `params.yaml` in the current folder, calls one function of the library and records
the run in MLflow. What a user can put right ends in one line and exit status 2.
"""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING, Annotated

import typer

from pd_core.cli.common import Reporter, Setting, note, register, setting_of
from pd_core.core.errors import BadParams, Interrupted, PdError
from pd_core.core.hooks import Hooks
from pd_core.data.loading.splits import Protocol
from pd_core.pipeline import code_hash, processes, signals
from pd_core.pipeline.processes import Member
from pd_core.pipeline.redaction import masked, masked_tracebacks
from pd_core.pipeline.settings import compute_with, load_settings, telemetry_off
from pd_core.pipeline.stages import jobs
from pd_core.pipeline.stages.jobs import Job, inputs, output, tuning_of_student
from pd_core.pipeline.stages.params import DATA, PARAMS

if TYPE_CHECKING:
    from pd_core.mlops.tracking.recorder import DataInput, StageRun

DVCS_ARGUMENTS = {"allow_extra_args": True, "ignore_unknown_options": True}

app = typer.Typer(
    help="PromptKD: distil a large CLIP into a small one on unlabelled pictures.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

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
    code_hash.write(DATA / code_hash.CODE)


@app.command()
def prepare(name: Name, seed: Seed = None, protocol: InProtocol = None) -> None:
    """Stage: draw the few-shot split and list the unlabelled pictures."""
    setting = setting_of(name, seed, protocol=protocol)
    with _recorded("prepare", setting, "pictures") as (_, report):
        jobs.prepare(setting.job, on_progress=report.progress)


@app.command()
def teacher(name: Name, seed: Seed = None, protocol: InProtocol = None) -> None:
    """Stage: tune the teacher's prompts on the few labels."""
    _train("teacher", setting_of(name, seed, protocol=protocol), jobs.teacher)


@app.command("class-vectors")
def class_vectors(
    name: Name, seed: Seed = None, source: Source = None, protocol: InProtocol = None
) -> None:
    """Stage: compute the teacher's text features of all classes, once."""
    setting = setting_of(name, seed, source, protocol)
    compute_with(setting.job.params.run.threads)
    with _recorded("class_vectors", setting, "classes") as (_, report):
        jobs.class_vectors(setting.job, on_progress=report.progress)


@app.command()
def student(
    name: Name, seed: Seed = None, source: Source = None, protocol: InProtocol = None
) -> None:
    """Stage: distil the student on the unlabelled pictures."""
    _train("student", setting_of(name, seed, source, protocol), jobs.student)


@app.command()
def evaluate(
    name: Name, seed: Seed = None, source: Source = None, protocol: InProtocol = None
) -> None:
    """Stage: measure student and teacher on test pictures; register the profile's student."""
    setting = setting_of(name, seed, source, protocol)
    job = setting.job
    compute_with(job.params.run.threads)
    with _recorded("evaluate", setting) as (run, report):
        metrics = jobs.evaluate(job, Hooks(on_progress=report.progress, on_note=note))
        run.log_metrics(metrics)
        run.log_file(job.evaluation / "predictions.json")
        run.log_texts(lambda: _figures(job))
    if protocol is None:
        register(setting, run.run_id)


@app.command("cross-validate")
def cross_validate(name: Name, seed: Seed = None) -> None:
    """Stage: estimate the accuracy from the few labels, where no test picture has one."""
    setting = setting_of(name, seed)
    compute_with(setting.job.params.run.threads)
    with _recorded("cross_validate", setting) as (run, _):
        run.log_metrics(jobs.cross_validate(setting.job, Hooks(on_note=note)))


@app.command("tuned-student")
def tuned_student(name: Name, seed: Seed = None) -> None:
    """Stage: the paper's main baseline, prompts tuned on the student's own CLIP."""
    setting = setting_of(name, seed)
    tuning_of_student(setting.job)  # refuses a data set without it
    _train("tuned_student", setting, jobs.tuned_student)


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


def _verbs(*verbs: Callable[..., None]) -> typer.Typer:
    group = typer.Typer()
    for verb in verbs:
        group.command()(verb)
    return group


@cache
def add_groups() -> None:
    """Add the verbs that are no stages, in the order of `promptkd --help`."""
    from pd_core.cli import data, experiments, models, registry, reports
    from pd_core.cli.doctor import doctor

    app.command()(reports.report)
    app.command()(reports.show)
    app.add_typer(experiments.embedded, name="embedded")
    app.add_typer(models.app)
    app.add_typer(_verbs(models.serve, doctor))
    app.add_typer(experiments.ablation, name="ablation")
    app.add_typer(data.app, name="data")
    app.add_typer(data.weights, name="weights")
    app.add_typer(registry.app, name="registry")
    app.add_typer(_verbs(reports.page, experiments.benchmark, reports.compare))
    app.add_typer(experiments.protocol, name="protocols")


def _is_stage(arguments: Sequence[str]) -> bool:
    """Whether a verb of this file is called, for which the others need not be imported."""
    verbs = {
        info.name or info.callback.__name__ for info in app.registered_commands if info.callback
    }
    return bool(arguments) and arguments[0] in verbs


def _train(stage: str, setting: Setting, work: Callable[[Job, Hooks], jobs.Metrics | None]) -> None:
    """Run a training, in as many processes as the parameters say; the first one records it."""
    job = setting.job
    count = job.params.run.processes
    member = processes.member()
    if count > 1 and member is None:
        command = [sys.executable, "-m", "pd_core", *sys.argv[1:]]
        raise typer.Exit(processes.together(command, count))
    compute_with(job.params.run.threads)
    with signals.postponed() as interrupted, _joined(member, job.device, count):
        if member is not None and member.number > 0:
            work(job, Hooks(interrupted))
            return
        with _recorded(stage, setting) as (run, report):
            hooks = Hooks(interrupted, report.epoch, report.progress, report.loss, note)
            metrics = work(job, hooks)
            if metrics is not None:
                run.log_metrics(metrics)


@contextmanager
def _joined(member: Member | None, device: str, count: int) -> Iterator[None]:
    """Join those that train together, if this process was started as one."""
    if member is None:
        yield
        return
    if member.processes != count:
        raise BadParams(
            f"{PARAMS}: run.processes = {count}, but {member.processes} were started; make them"
            " equal"
        )
    processes.end_with_parent()
    from pd_core.training.loop import distributed

    try:
        with distributed.joined(device, **asdict(member)):
            yield
    except distributed.LostProcess:
        raise typer.Exit(processes.LOST) from None


@contextmanager
def _recorded(
    stage: str, setting: Setting, unit: str = "steps"
) -> Iterator[tuple[StageRun, Reporter]]:
    """Show a stage's progress, counted in a unit, and record the stage as an MLflow run.

    A server that is down is refused before the stage starts.
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
        with Reporter(f"{stage.replace('_', ' ')} {label}", unit, record=run) as report:
            yield run, report
        if (history := out / "history.json").is_file():
            run.log_file(history)


def _figures(job: Job) -> dict[str, str]:
    from pd_core.reporting import page_dataset

    return page_dataset.of_evaluation(job)


def _data_inputs(stage: str, job: Job) -> list[DataInput]:
    """Return the data set that a stage reads: what `prepare` made of it, or its fingerprint."""
    from pd_core.mlops.tracking.recorder import DataInput

    name = job.params.name
    if stage == "prepare":
        return [DataInput(name, job.fingerprint, "preparation")] if job.fingerprint else []
    return [DataInput(name, job.prepared, "evaluation" if stage == "evaluate" else "training")]


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
    if not _is_stage(sys.argv[1:]):
        add_groups()
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
