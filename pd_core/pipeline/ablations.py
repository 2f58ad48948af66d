"""``ablations/params.yaml``, typed, and the runs of its variants for every data set and seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from pd_core.core.artifacts import read_json, write_json
from pd_core.core.atomic import write_folder
from pd_core.core.config import Config, Count
from pd_core.core.errors import BadParams, missing, unknown
from pd_core.pipeline.stages import jobs
from pd_core.pipeline.stages.jobs import Job
from pd_core.pipeline.stages.params import (
    DATA,
    DatasetParams,
    DatasetRow,
    Params,
    bad_params,
    check_row,
    load_params,
    read_mapping,
    validate,
)

FOLDER = Path("ablations")
"""The pipeline's folder, seen from the profile's."""
BASES, RESULTS = FOLDER / DATA / "base", FOLDER / DATA / "results"
REPORT = Path("reports") / FOLDER

Percent = Annotated[float, Field(ge=0, le=100)]


class Variant(DatasetRow):
    """Changes to the profile: keys by stage, or the baseline instead of a distillation."""

    baseline: bool = False

    @property
    def changed(self) -> set[str]:
        """The stages that have keys of their own here."""
        return {stage for stage in DatasetRow.model_fields if self.overrides(stage)}


class AblationRow(Config):
    """A line of a table: a measured variant, and what the paper measured for the same change.

    Attributes:
        variant: whose results it shows.
        label: of the line.
        who: whose accuracy.
        paper: base, novel and harmonic mean; the harmonic mean alone; None if not measured.
    """

    variant: str
    label: str
    who: Literal[
        "zero_shot_student", "zero_shot_teacher", "teacher", "student", "tuned_student"
    ] = "student"
    paper: tuple[Percent, Percent, Percent] | Percent | None = None


class AblationTable(Config):
    """One ablation.

    Attributes:
        title: of the table.
        source: where the paper reports it.
        reference: the variant that the others are compared with.
        rows: its lines.
    """

    title: str
    source: str
    reference: str
    rows: tuple[AblationRow, ...]

    @property
    def reference_row(self) -> AblationRow:
        """The reference's row: its student's if it has several, else the first of them.

        Raises:
            BadParams: no row shows the reference.
        """
        for row in sorted(self.rows, key=lambda row: row.who != "student"):
            if row.variant == self.reference:
                return row
        variants = ", ".join(row.variant for row in self.rows)
        raise BadParams(
            f"reference '{self.reference}' of '{self.title}' is none of its rows: {variants}"
        )


class AblationParams(Config):
    """The whole file."""

    profile: str  # the params.yaml that the variants change
    datasets: Annotated[tuple[str, ...], Field(min_length=1)]
    seeds: Annotated[tuple[Count, ...], Field(min_length=1)]
    variants: dict[str, Variant]
    tables: tuple[AblationTable, ...]

    def variant(self, name: str) -> Variant:
        """Return a variant; refuse an unknown name."""
        if name not in self.variants:
            raise unknown("variant", name, self.variants)
        return self.variants[name]

    def for_dataset(self, profile: Params, dataset: str, name: str | None = None) -> DatasetParams:
        """Merge a variant's changes over the profile's parameters of a data set.

        Raises:
            UnknownName: There is no such data set or variant.
        """
        if name is None:
            return profile.for_dataset(dataset)
        variant = self.variant(name)
        wanted: dict[str, Any] = {dataset: {}} if variant.baseline else {}
        return profile.model_copy(update={"tuned_student": wanted}).for_dataset(dataset, variant)


def load_ablations(path: Path) -> tuple[AblationParams, Params]:
    """Read the file and the profile that it names, and check every variant.

    Raises:
        MissingFile: One of the files is not there.
        BadParams: A key is unknown or missing, or a value has a wrong type or range.
        UnknownName: A table shows a variant that is not there, or there is no such data set.
    """
    try:
        params = validate(AblationParams, read_mapping(path, AblationParams))
    except ValidationError as error:
        raise bad_params(path, AblationParams, error) from None
    profile = load_params(path.parent / params.profile)
    for dataset in params.datasets:
        profile.for_dataset(dataset)  # refuses an unknown one
    for name, variant in params.variants.items():
        check_row(path, profile, variant, f"variants.{name}")
    for table in params.tables:
        for row in table.rows:
            params.variant(row.variant)
        table.reference_row  # noqa: B018 - refuses a reference that no row shows
    return params, profile


def make_base(out: Path, params: DatasetParams, *, seeds: Sequence[int], **where: Any) -> None:
    """Prepare a data set, tune its teacher and compute its class vectors, for every seed.

    `where` is device, data root and features, as `Job.at` takes them.
    """
    with write_folder(out) as folder:
        for seed in seeds:
            job = Job.at(folder, params, seed=seed, suffix=f"-{seed}", **where)
            jobs.prepare(job)
            jobs.teacher(job)
            jobs.class_vectors(job)


def run_variant(
    bases: Path,
    out: Path,
    params: Sequence[DatasetParams],
    *,
    changed: set[str],
    seeds: Sequence[int],
    on_run: Callable[[str, int], None] = lambda _dataset, _seed: None,
    **where: Any,
) -> None:
    """Run one variant on every data set with every seed; write `<data set>/metrics.json`.

    Args:
        bases: holds what `make_base` wrote, by data set.
        out: folder to write into.
        params: of every data set, with the variant's changes. One that has a `tuned_student` runs
            that baseline instead of a distillation.
        changed: the stages that the variant changes; the others' outputs are taken from the base.
            The few-shot lists are the base's too: of `prepare`, change the unlabelled list only.
        seeds: of the draws and the training.
        on_run: called before each run with the data set's name and the seed.
        **where: device, data root and features, as `Job.at` takes them.

    Raises:
        MissingFile: a data set has no base.
    """
    with write_folder(out) as folder:
        for mine in params:
            base = bases / mine.name
            if not base.is_dir():
                raise missing("base", base, f"run `dvc repro base@{mine.name}`")
            results = {}
            for seed in seeds:
                on_run(mine.name, seed)
                job = Job.at(base, mine, seed=seed, suffix=f"-{seed}", **where)
                results[str(seed)] = _run(job, changed)
            write_json(folder / mine.name / "metrics.json", results)


def _run(base: Job, changed: set[str]) -> dict[str, Any]:
    """Run one variant once; return the evaluation's content."""
    with TemporaryDirectory() as scratch:
        own = Job.at(
            Path(scratch), base.params, seed=base.seed, suffix=f"-{base.seed}",
            device=base.device, data_root=base.data_root, features=base.features,
        )  # fmt: skip
        job = replace(base, student=own.student, evaluation=own.evaluation)
        if "prepare" in changed:
            job = replace(job, prepared=own.prepared)
            jobs.prepare(job)
        if base.params.tuned_student is not None:
            return dict(jobs.tuned_student(replace(own, prepared=job.prepared)))
        if "teacher" in changed:
            job = replace(job, teacher=own.teacher, vectors=own.vectors)
            jobs.teacher(job)
            jobs.class_vectors(job)
        jobs.student(job)
        # Without a change everybody is measured, else those who may be others by it.
        affected = ["teacher", "student"] if "teacher" in changed else ["student"]
        jobs.evaluate(job, who=affected if changed else None)
        content: dict[str, Any] = read_json(job.evaluation / "metrics.json")
        return content
