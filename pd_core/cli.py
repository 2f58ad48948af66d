"""The command line: one verb a stage, and one for each thing a user does besides.

Every verb reads `params.yaml` in the current folder, calls one function of the library and records
the run in MLflow. What a user can put right ends in one line and exit status 2.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from pd_core import cli_embedded, lineage
from pd_core.errors import PdError
from pd_core.params import DATA, PARAMS, DatasetParams, StudentParams, TeacherParams, load_params
from pd_core.progress import Reporter
from pd_core.settings import Settings, compute_with, load_settings, telemetry_off

if TYPE_CHECKING:
    from pd_core.tracking import StageRun

REPORTS = Path("reports")

app = typer.Typer(
    help="PromptKD: distil a large CLIP into a small one on unlabelled pictures.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(cli_embedded.app, name="embedded")

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


@dataclass(frozen=True)
class Job:
    """One data set's parameters and folders, for one seed and one source of the teacher."""

    profile: str
    params: DatasetParams
    seed: int
    device: str
    root: Path  # of the repository
    data_root: Path
    settings: Settings
    prepared: Path
    teacher: Path
    vectors: Path
    student: Path
    evaluation: Path


def _job(name: str, seed: int | None, source: str | None = None) -> Job:
    params = load_params(PARAMS)
    mine = params.for_dataset(name)
    if source is not None:
        params.for_dataset(source)  # refuses an unknown one
    settings = load_settings()
    root = Path(params.profile.root)
    suffix = "" if seed is None else f"-{seed}"
    cross = f"{name}-from-{source}" if source else name
    return Job(
        profile=params.profile.name,
        params=mine,
        seed=params.run.seed if seed is None else seed,
        device=settings.device or params.run.device,
        root=root,
        data_root=settings.data_root or root / DATA / "raw",
        settings=settings,
        prepared=DATA / "prepare" / f"{name}{suffix}",
        teacher=DATA / "teacher" / f"{source or name}{suffix}",
        vectors=DATA / "class_vectors" / f"{cross}{suffix}",
        student=DATA / "student" / f"{cross}{suffix}",
        evaluation=DATA / "evaluate" / f"{cross}{suffix}",
    )


@app.command()
def prepare(name: Name, seed: Seed = None) -> None:
    """Stage: draw the few-shot split and list the unlabelled pictures."""
    job = _job(name, seed)
    from pd_core import prepare as stage

    with _tracked("prepare", job, deps=[], out=job.prepared):
        stage.run(
            name,
            job.prepared,
            data_root=job.data_root,
            protocol=job.params.prepare.protocol,
            shots=job.params.prepare.shots,
            val_shots=job.params.prepare.val_shots,
            seed=job.seed,
        )


@app.command()
def teacher(name: Name, seed: Seed = None) -> None:
    """Stage: tune the teacher's prompts on the few labels."""
    job = _job(name, seed)
    compute_with(job.params.run.threads)
    from pd_core import pretrain
    from pd_core.models.compute import Precision
    from pd_core.models.teacher import TeacherMethod

    with (
        _tracked(
            "teacher", job, deps=[job.prepared, *_weights(job.params.teacher)], out=job.teacher
        ) as run,
        Reporter(f"teacher {job.teacher.name}") as report,
    ):
        pretrain.run(
            job.prepared,
            job.teacher,
            model=job.params.teacher.model,
            weights=job.params.teacher.weights,
            data_root=job.data_root,
            method=TeacherMethod(job.params.teacher.method),
            template=job.params.teacher.template,
            batch_size=job.params.teacher.batch_size,
            epochs=job.params.teacher.epochs,
            lr=job.params.teacher.lr,
            warmup_epochs=job.params.teacher.warmup_epochs,
            warmup_lr=job.params.teacher.warmup_lr,
            momentum=job.params.teacher.momentum,
            weight_decay=job.params.teacher.weight_decay,
            text_length=job.params.teacher.text_length,
            text_depth=job.params.teacher.text_depth,
            image_length=job.params.teacher.image_length,
            image_depth=job.params.teacher.image_depth,
            text_loss_weight=job.params.teacher.text_loss_weight,
            image_loss_weight=job.params.teacher.image_loss_weight,
            logits_loss_weight=job.params.teacher.logits_loss_weight,
            gpa_mean=job.params.teacher.gpa_mean,
            gpa_std=job.params.teacher.gpa_std,
            templates=job.params.teacher.templates,
            crop_scale=job.params.teacher.crop_scale,
            flip=job.params.teacher.flip,
            seed=job.seed,
            threads=job.params.run.threads,
            workers=job.params.run.workers,
            device=job.device,
            precision=Precision(job.params.run.precision),
            on_epoch=report.epoch,
            on_progress=report.progress,
        )
        run.log_epochs(report.history)


@app.command("class-vectors")
def class_vectors(name: Name, seed: Seed = None, source: Source = None) -> None:
    """Stage: compute the teacher's text features of all classes, once."""
    job = _job(name, seed, source)
    compute_with(job.params.run.threads)
    from pd_core import class_vectors as stage

    deps = [job.prepared, job.teacher, *_weights(job.params.teacher)]
    with _tracked("class_vectors", job, deps=deps, out=job.vectors):
        stage.run(
            job.prepared,
            job.teacher,
            job.vectors,
            model=job.params.teacher.model,
            weights=job.params.teacher.weights,
            threads=job.params.run.threads,
            device=job.device,
        )


@app.command()
def student(name: Name, seed: Seed = None, source: Source = None) -> None:
    """Stage: distil the student on the unlabelled pictures."""
    job = _job(name, seed, source)
    compute_with(job.params.run.threads)
    from pd_core import distill
    from pd_core.models.compute import Precision

    deps = [
        job.prepared,
        job.teacher,
        job.vectors,
        *_weights(job.params.student, job.params.teacher),
    ]
    with (
        _tracked("student", job, deps=deps, out=job.student) as run,
        Reporter(f"student {job.student.name}") as report,
    ):
        distill.run(
            job.prepared,
            job.teacher,
            job.vectors,
            job.student,
            model=job.params.student.model,
            weights=job.params.student.weights,
            data_root=job.data_root,
            teacher_model=job.params.teacher.model,
            teacher_weights=job.params.teacher.weights,
            batch_size=job.params.student.batch_size,
            epochs=job.params.student.epochs,
            lr=job.params.student.lr,
            warmup_epochs=job.params.student.warmup_epochs,
            warmup_lr=job.params.student.warmup_lr,
            momentum=job.params.student.momentum,
            weight_decay=job.params.student.weight_decay,
            image_length=job.params.student.image_length,
            image_depth=job.params.student.image_depth,
            temperature=job.params.student.temperature,
            kd_weight=job.params.student.kd_weight,
            view_epochs=job.params.student.view_epochs,
            crop_scale=job.params.student.crop_scale,
            flip=job.params.student.flip,
            seed=job.seed,
            threads=job.params.run.threads,
            workers=job.params.run.workers,
            device=job.device,
            precision=Precision(job.params.run.precision),
            on_epoch=report.epoch,
            on_progress=report.progress,
        )
        run.log_epochs(report.history)


@app.command()
def evaluate(name: Name, seed: Seed = None, source: Source = None) -> None:
    """Stage: measure student and teacher on test pictures, and register the student."""
    job = _job(name, seed, source)
    compute_with(job.params.run.threads)
    from pd_core import evaluate as stage
    from pd_core.models.compute import Precision

    folders = [job.prepared, job.teacher, job.vectors, job.student]
    deps = [*folders, *_weights(job.params.student, job.params.teacher)]
    with (
        _tracked("evaluate", job, deps=deps, out=job.evaluation) as run,
        Reporter(f"evaluate {job.evaluation.name}") as report,
    ):
        metrics = stage.run(
            job.prepared,
            job.teacher,
            job.vectors,
            job.student,
            job.evaluation,
            model=job.params.student.model,
            weights=job.params.student.weights,
            data_root=job.data_root,
            teacher_model=job.params.teacher.model,
            teacher_weights=job.params.teacher.weights,
            split=job.params.evaluate.split,
            batch_size=job.params.evaluate.batch_size,
            threads=job.params.run.threads,
            workers=job.params.run.workers,
            device=job.device,
            precision=Precision(job.params.run.precision),
            on_progress=report.progress,
        )
        run.log_metrics(metrics)
    _register(job, metrics, run.run_id)


@app.command()
def report() -> None:
    """Stage: put all data sets' results into one summary, table and figure."""
    params = load_params(PARAMS)
    settings = load_settings()
    from pd_core import report as stage
    from pd_core import tracking

    folder = REPORTS / params.profile.name
    with tracking.stage_run(
        tracking.open_store(Path(params.profile.root), settings.mlflow_tracking_uri),
        profile=params.profile.name,
        dataset="",
        stage="report",
        params={"datasets": list(params.datasets)},
        deps=[*lineage.stage_code("report"), DATA / "evaluate"],
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
        )
        run.log_metrics(stage.read_summary(folder)["average"])
        run.log_file(folder)


@app.command()
def show() -> None:
    """Print the result table, and where to look further."""
    params = load_params(PARAMS)
    from pd_core import report as stage

    folder = REPORTS / params.profile.name
    console = Console()
    console.print(stage.table(stage.read_summary(folder), stage.read_titles(DATA / "prepare")))
    console.print(f"Report   {folder / 'summary.md'}, {folder / 'summary.png'}")
    console.print(f"MLflow   {_mlflow_page()}")


@contextmanager
def _tracked(stage: str, job: Job, *, deps: list[Path], out: Path) -> Iterator[StageRun]:
    """Record what the block does as an MLflow run; refuse a dead server before it starts."""
    from pd_core import tracking

    store = tracking.open_store(job.root, job.settings.mlflow_tracking_uri)
    block = getattr(job.params, stage)
    with tracking.stage_run(
        store,
        profile=job.profile,
        dataset=out.name,
        stage=stage,
        params={"run": job.params.run.model_dump(), stage: block.model_dump(mode="json")},
        deps=[*lineage.stage_code(stage), *deps],
        outs=[out],
        seed=job.seed,
        protocol=job.params.prepare.protocol,
        experiment=job.settings.mlflow_experiment,
    ) as run:
        yield run
        if (history := out / "history.json").is_file():
            run.log_file(history)


def _weights(*models: TeacherParams | StudentParams) -> list[Path]:
    """Return the files that models are made of, where they are files and not tags."""
    given = (Path(model.weights) for model in models if model.weights)
    return sorted({path for path in given if path.is_file()})


def _register(job: Job, metrics: dict[str, dict[str, float]], run_id: str | None) -> None:
    from pd_core import predictor, registry, tracking

    registry.register(
        tracking.open_store(job.root, job.settings.mlflow_tracking_uri),
        profile=job.profile,
        dataset=job.student.name,
        student=job.student / "student.safetensors",
        vectors=job.vectors / "class_vectors.safetensors",
        metrics=metrics,
        example=predictor.example_picture(job.prepared, data_root=job.data_root),
        weights=job.params.student.weights,
        tags={"seed": str(job.seed), "protocol": job.params.prepare.protocol},
        run_id=run_id,
        experiment=job.settings.mlflow_experiment,
    )


def _mlflow_page() -> str:
    from pd_core import tracking

    uri = load_settings().mlflow_tracking_uri
    if uri and uri.startswith("http"):
        return uri
    return f"`mlflow ui --backend-store-uri {uri or 'sqlite:///' + tracking.DATABASE}`"


def main() -> None:
    """Run the command line; errors of the user's end in one line and status 2."""
    telemetry_off()
    try:
        app()
    except PdError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    except BrokenPipeError:
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
