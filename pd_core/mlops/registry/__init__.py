"""MLflow's model registry: models, their versions, aliases and tags.

A model is called `promptkd-<data set>`; its versions count from 1. The alias `champion` names the
version that services load, `challenger` the candidate for its place. In this package `store` is the
address that `tracking.open_store` returned, and a function raises PdError where MLflow refuses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pd_core.core.errors import BadArtifact, BadParams, UnknownName, unknown
from pd_core.mlops import tracking
from pd_core.mlops.tracking import (
    LINEAGE,
    LINEAGE_FILE,
    StoreRefuses,
    every,
    one_line,
    read_lineage,
)
from pd_core.pipeline.provenance import Lineage
from pd_core.pipeline.redaction import masked

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

PREFIX = "promptkd-"
CHAMPION = "champion"
CHALLENGER = "challenger"
FILES = "files"
"""Tag of a version: the hash of its folder."""
KIND, DISTILLED, QUANTIZED = "kind", "distilled", "quantized"
"""Tag of a version: distilled, quantized, or `classes-...` after a change of the classes."""
PARENT = "parent"
"""Tag of a version that was made from another one: its number."""
PRECISION = "precision"
"""Tag of a quantized version."""
INHERITED = ("seed", "protocol", "selection", "accuracy")
"""Tags that a version has from the one that it was made from."""

BUNDLE = "artifacts/student"
"""Folder of the student in a version's, see `pd_core.mlops.bundle`."""

INPUT = "image"
"""Column of images in a version's input."""

_ADDED = "registered_model_meta"
"""File that MLflow writes into a version's folder when it loads the version."""

RegisteredPrecision = Literal["fp32", "int8"]

_REFERENCE = re.compile(r"(?:models:/)?(?P<name>[^@/]+)(?:/(?P<version>\d+)|@(?P<alias>[\w-]+))?")


@dataclass(frozen=True)
class Version:
    """A version in the registry.

    Attributes:
        name: `promptkd-<data set>`.
        number: counts from 1.
        tags: `dataset`, `kind`, `files`, `lineage`, `student/hm`, decisions, ...
        aliases: `champion`, `challenger`, or none.
        created: seconds since 1970.
        run_id: of the run that it was logged to, if there is one.
    """

    name: str
    number: int
    tags: Mapping[str, str]
    aliases: tuple[str, ...]
    created: float
    run_id: str | None = None

    @property
    def uri(self) -> str:
        """The address for `mlflow.pyfunc.load_model`."""
        return f"models:/{self.name}/{self.number}"

    @property
    def dataset(self) -> str:
        """The data set that the student was distilled on."""
        return self.name.removeprefix(PREFIX)


def model_name(dataset: str) -> str:
    """Return the name that a data set's students are registered under."""
    return dataset if dataset.startswith(PREFIX) else f"{PREFIX}{dataset}"


def models(store: str) -> list[str]:
    """List the names of the registered students."""
    with refusals("list the models", store):
        mlflow = tracking.client(store)
        entries = every(lambda token: mlflow.search_registered_models(page_token=token))
    return sorted(entry.name for entry in entries if entry.name.startswith(PREFIX))


def versions(store: str, name: str) -> list[Version]:
    """List the versions of a model (or of a data set's), the oldest first.

    Raises:
        UnknownName: there is no such model.
    """
    name = model_name(name)
    with refusals(f"list '{name}'", store):
        mlflow = tracking.client(store)
        aliases = _aliases(mlflow, store, name)
        entries = every(
            lambda token: mlflow.search_model_versions(f"name = '{name}'", page_token=token)
        )
    return sorted((_version(entry, aliases) for entry in entries), key=lambda v: v.number)


def find(store: str, reference: str, *, default: str | None = None) -> Version:
    """Find the version that a reference names.

    A reference is `greek` or `promptkd-greek`, maybe with `@champion` or `/3` behind it, maybe with
    `models:/` in front. Without alias and number it is the alias `default`, or the newest version.

    Raises:
        BadParams: it is no reference.
        UnknownName: there is no such model, alias or version.
    """
    parts = _REFERENCE.fullmatch(reference)
    if parts is None:
        raise BadParams(
            f"'{reference}' names no model; give a data set, as greek, greek@champion or greek/3"
        )
    name, number, alias = model_name(parts["name"]), parts["version"], parts["alias"] or default
    entries = versions(store, name)
    if not entries:
        raise UnknownName(f"'{name}' has no versions; run `promptkd registry register`")
    if number:
        matches = [version for version in entries if version.number == int(number)]
        if not matches:
            numbers = [str(version.number) for version in entries]
            raise unknown(f"version of '{name}'", number, numbers)
    else:
        matches = [version for version in entries if not alias or alias in version.aliases]
        if not matches:
            raise UnknownName(
                f"'{name}' has no {alias}; give a version, as {name}/{entries[-1].number}, or make "
                f"one {alias}: promptkd registry promote {name}"
            )
    return matches[-1]


def in_precision(store: str, version: Version, precision: RegisteredPrecision) -> Version:
    """Find a version in a precision: itself, its newest int8 version, or its original.

    Raises:
        UnknownName: there is none.
    """
    if version.tags.get(PRECISION, "fp32") == precision:
        return version
    name, number = version.name, version.number
    if precision == "fp32":
        return find(store, f"{name}/{version.tags[PARENT]}")
    made = [other for other in versions(store, name) if other.tags.get(PARENT) == str(number)]
    matches = [other for other in made if other.tags.get(PRECISION) == precision]
    if not matches:
        raise UnknownName(
            f"version {number} of '{name}' has no {precision} version; make one: promptkd registry "
            f"quantize {version.dataset}/{number}"
        )
    return matches[-1]


def fetch(store: str, version: Version, folder: Path) -> Path:
    """Copy a version's model into a folder; return the model's folder, which holds `MLmodel`.

    The file that MLflow adds when it loads a version is no part of the model, and is left out.

    Raises:
        PdError: its files are not there.
    """
    with refusals(f"fetch version {version.number} of '{version.name}'", store):
        mlflow = tracking.client(store)
        source = mlflow.get_model_version_download_uri(version.name, str(version.number))
        from mlflow.artifacts import download_artifacts

        folder.mkdir(parents=True, exist_ok=True)
        model = Path(
            download_artifacts(artifact_uri=source, dst_path=str(folder), tracking_uri=store)
        )
        (model / _ADDED).unlink(missing_ok=True)
        return model


def set_tags(store: str, version: Version, tags: Mapping[str, str]) -> None:
    """Add tags to a version, in their order."""
    with refusals(f"tag version {version.number} of '{version.name}'", store):
        mlflow = tracking.client(store)
        for key, value in tags.items():
            mlflow.set_model_version_tag(version.name, str(version.number), key, value)


def set_alias(store: str, version: Version, alias: str) -> None:
    """Point an alias at a version, whatever it pointed at before."""
    with refusals(f"give '{version.name}' the alias {alias}", store):
        tracking.client(store).set_registered_model_alias(version.name, alias, str(version.number))


def remove_alias(store: str, name: str, alias: str) -> None:
    """Remove an alias, if it is there."""
    with refusals(f"take the alias {alias} from '{name}'", store):
        tracking.client(store).delete_registered_model_alias(name, alias)


def lineage(store: str, version: Version) -> Lineage:
    """Read a version's lineage.

    Versions of earlier releases of this package have a tag for each hash.

    Raises:
        BadArtifact: it is not the one that was registered.
    """
    tags = version.tags
    if LINEAGE not in tags:
        outs = {key[4:]: value for key, value in tags.items() if key.startswith("out:")}
        return Lineage(tags.get("git_commit", ""), tags.get("git_dirty", ""), outs=outs)
    try:
        with refusals(f"read the lineage of version {version.number}", store):
            result = read_lineage(tracking.client(store), str(version.run_id), version.name)
        is_intact = result.digest() == tags[LINEAGE]
    except (TypeError, ValueError):  # not the JSON of a lineage
        is_intact = False
    if not is_intact:
        raise BadArtifact(
            f"{LINEAGE_FILE} of version {version.number} of '{version.name}' is not the one that "
            f"was registered; register it again: promptkd registry register {version.dataset}"
        )
    return result


@contextmanager
def refusals(what: str, store: str) -> Iterator[None]:
    """Turn MLflow's errors into a StoreRefuses of one line: "cannot <what> in ..."."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        raise StoreRefuses(
            f"cannot {what} in '{masked(store)}': {one_line(error)}; see that the tracking server "
            f"is up and has a registry"
        ) from None


@contextmanager
def ignoring(code: str) -> Iterator[None]:
    """Ignore MLflow's errors that have a code."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code != code:
            raise


def load_model(model: Path) -> Any:
    """Load the student of a folder from `fetch`: a `PortableStudent`, of the version's own code.

    Raises:
        BadArtifact: it cannot be loaded.
    """
    import mlflow

    try:
        return mlflow.pyfunc.load_model(str(model)).unwrap_python_model().student
    except Exception as error:  # its code may do anything
        reason = one_line(error) or type(error).__name__
        raise BadArtifact(
            f"the model cannot be loaded ({reason}); register it again, or take another version"
        ) from None


def _aliases(mlflow: MlflowClient, store: str, name: str) -> dict[int, tuple[str, ...]]:
    """Return the aliases of each version that has one."""
    with ignoring("RESOURCE_DOES_NOT_EXIST"):
        aliases: dict[int, tuple[str, ...]] = {}
        for alias, number in sorted(mlflow.get_registered_model(name).aliases.items()):
            aliases[int(number)] = (*aliases.get(int(number), ()), alias)
        return aliases
    raise unknown("model", name, models(store))


def _version(entry: ModelVersion, aliases: Mapping[int, tuple[str, ...]]) -> Version:
    number, created = int(entry.version), entry.creation_timestamp / 1000
    own = aliases.get(number, ())
    return Version(entry.name, number, dict(entry.tags), own, created, entry.run_id or None)
