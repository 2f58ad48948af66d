"""``protocols/params.yaml``, typed, and the paths of the protocols' stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from pd_core.core.config import Config, Count
from pd_core.core.errors import BadParams, unknown
from pd_core.data.catalog.catalogue import dataset_names
from pd_core.data.loading.splits import Protocol
from pd_core.pipeline.stages.jobs import Job
from pd_core.pipeline.stages.params import (
    DATA,
    PARAMS,
    DatasetParams,
    DatasetRow,
    Params,
    bad_params,
    check_row,
    load_params,
    read_mapping,
    validate,
)

FOLDER = Path("protocols")
"""The pipeline's folder, seen from the profile's."""
RESULTS = FOLDER / DATA
EVALUATIONS = RESULTS / "evaluate"
"""In one folder for all protocols, which the report depends on."""
SOURCE = "source"
REPORT = Path("reports") / FOLDER
"""Results of the stages, seen from the profile's folder."""


class SourceParams(DatasetRow):
    """The data set whose teacher others get, and what differs from the profile for it."""

    dataset: str


class ProtocolsParams(Config):
    """The whole file."""

    seeds: Annotated[tuple[Count, ...], Field(min_length=1)]
    datasets: dict[Protocol, tuple[str, ...]]
    source: SourceParams
    changes: dict[Protocol, DatasetRow]

    def of(self, protocol: Protocol) -> tuple[str, ...]:
        """Return the data sets that a protocol is measured on."""
        return self.datasets.get(protocol, ())

    def is_source(self, protocol: Protocol, name: str) -> bool:
        """Tell whether a data set lends its teacher in a protocol."""
        return protocol.has_source and name == self.source.dataset

    def for_dataset(self, profile: Params, protocol: Protocol, name: str) -> DatasetParams:
        """Merge a protocol's changes over the profile's parameters of a data set.

        Of the source, all classes are taught.

        Raises:
            UnknownName: The protocol has no such data set.
        """
        if self.is_source(protocol, name):
            row: DatasetRow = self.source
            taught = Protocol.ALL_CLASSES
        else:
            row, taught = self.changes.get(protocol, DatasetRow()), protocol
            if name not in self.of(protocol):
                raise unknown(f"data set of {protocol}", name, self.of(protocol))
        changed = row.model_copy(update={"prepare": {**row.prepare, "protocol": taught}})
        rows = {**profile.datasets, name: profile.datasets.get(name, DatasetRow())}
        return profile.model_copy(update={"datasets": rows}).for_dataset(name, changed)


def load_protocols(folder: Path) -> tuple[ProtocolsParams, Params]:
    """Read the file and that of its profile, one folder up, and check every protocol.

    Raises:
        MissingFile: One of the files is not there.
        BadParams: A key is unknown or missing, or a value has a wrong type or range.
        UnknownName: There is no such data set.
    """
    path = folder / PARAMS
    try:
        params = validate(ProtocolsParams, read_mapping(path, ProtocolsParams))
    except ValidationError as error:
        raise bad_params(path, ProtocolsParams, error) from None
    profile = load_params(folder.parent / PARAMS)
    check_row(path, profile, params.source, "source")
    for protocol, row in params.changes.items():
        check_row(path, profile, row, f"changes.{protocol}")
    _check_datasets(path, params, profile)
    return params, profile


def _check_datasets(path: Path, params: ProtocolsParams, profile: Params) -> None:
    """Make sure that every data set is known, and that no target is its own source."""
    catalog: Mapping[str, None] = dict.fromkeys([*profile.datasets, *dataset_names()])
    listed = {name for names in params.datasets.values() for name in names}
    for name in sorted({params.source.dataset, *listed}):
        if name not in catalog:
            raise unknown(f"data set in {path}:", name, catalog)
    for protocol, names in params.datasets.items():
        if any(params.is_source(protocol, name) for name in names):
            raise BadParams(
                f"{path}: datasets.{protocol} has '{params.source.dataset}', which is the source:"
                " list targets only"
            )


def job(
    params: ProtocolsParams, protocol: Protocol, mine: DatasetParams, *, seed: int, **rest: Any
) -> Job:
    """Lay a job out for one data set, with the protocol's changes in its parameters, and seed.

    `rest` is what else `Job.at` takes, folders apart.
    """
    lends = params.is_source(protocol, mine.name)
    borrowed = params.source.dataset if protocol.has_source and not lends else None
    part = SOURCE if lends else str(protocol)
    laid = Job.at(
        RESULTS / part,
        mine,
        seed=seed,
        checkpoints=RESULTS / "checkpoints" / part,
        suffix=f"-{seed}",
        source=borrowed,
        **rest,
    )
    teacher = RESULTS / (SOURCE if borrowed else part) / "teacher" / laid.teacher.name
    return replace(laid, teacher=teacher, evaluation=EVALUATIONS / part / laid.evaluation.name)
