"""Typed models of ``ablations/params.yaml``: the variants, and the tables that show them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from pd_core.ablation_report import Row, Table
from pd_core.blocks import Block, Count
from pd_core.errors import unknown
from pd_core.params import (
    DatasetParams,
    DatasetRow,
    Params,
    bad_params,
    check_row,
    load_params,
    read_mapping,
    validate,
)

Percent = Annotated[float, Field(ge=0, le=100)]


class Variant(DatasetRow):
    """What differs from the profile: keys by stage, or the baseline instead of a distillation."""

    baseline: bool = False

    @property
    def changed(self) -> set[str]:
        """The stages that have keys of their own here."""
        return {stage for stage in DatasetRow.model_fields if self.overrides(stage)}


class RowParams(Block):
    """A line of a table."""

    variant: str
    label: str
    who: Literal[
        "zero_shot_student", "zero_shot_teacher", "teacher", "student", "tuned_student"
    ] = "student"
    paper: tuple[Percent, Percent, Percent] | Percent | None = None


class TableParams(Block):
    """One ablation."""

    title: str
    source: str
    reference: str
    rows: tuple[RowParams, ...]

    def table(self) -> Table:
        """Return it as the report takes it."""
        rows = tuple(Row(row.variant, row.label, row.who, row.paper) for row in self.rows)
        return Table(self.title, self.source, rows, self.reference)


class AblationParams(Block):
    """The whole file."""

    profile: str  # the params.yaml that the variants change
    datasets: Annotated[tuple[str, ...], Field(min_length=1)]
    seeds: Annotated[tuple[Count, ...], Field(min_length=1)]
    variants: dict[str, Variant]
    tables: tuple[TableParams, ...]

    def variant(self, name: str) -> Variant:
        """Return a variant.

        Raises:
            UnknownName: There is none of that name.
        """
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
        table.table().reference_row  # noqa: B018 - refuses a reference that no row shows
    return params, profile
