"""Reader of ``params.yaml``: overrides of data sets, validation, errors of one line.

A data set's overrides (``datasets.<name>.<stage>``) are merged into the stage's block and validated
with it. A stage's block is the configuration of its function.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from pd_core.core.config import ComputeConfig, Config, Count, CountOrZero, Positive
from pd_core.core.errors import BadParams, missing, unknown
from pd_core.core.options import Metric, TeacherMethod
from pd_core.data.catalog.catalogue import PrepareConfig, dataset_names
from pd_core.data.loading.splits import Protocol
from pd_core.evaluation.metrics import EvaluateConfig
from pd_core.pipeline.stages.space import DEFAULT_SPACE, SearchParams
from pd_core.training.student.config import StudentConfig
from pd_core.training.teacher.config import TeacherConfig

PARAMS = Path("params.yaml")
"""File with the profile's parameters, in the folder of its pipeline."""
DATA = Path("data")
"""Directory of the stages' outputs, one folder per stage, relative to that folder."""

_PACKAGE = Path(__file__).resolve().parents[2]
_IN_WHEEL = _PACKAGE / "templates"
TEMPLATES = _IN_WHEEL if _IN_WHEEL.is_dir() else _PACKAGE.parent
"""Folder of the files that projects are made from, `params.yaml` among them."""

_MOST_VALUES = 100_000  # hundreds of times as many as the shipped files have


class ProfileParams(Config):
    """Benchmark that this file describes."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]  # of its reports
    root: str  # the repository's root, relative to this file


class RunParams(ComputeConfig):
    """Settings that all stages share."""

    processes: Count
    checkpoint_minutes: Positive
    features_gb: Positive
    features_precision: Literal["fp16", "fp32"]


class ClassVectorsParams(Config):
    """Empty: class vectors depend on the teacher only."""


class CrossValidateParams(Config):
    """Empty: cross-validation uses the parameters of the stages that it repeats."""


class PromotionParams(Config):
    """Requirements on a version before it becomes the champion."""

    metric: Metric
    margin: Annotated[float, Field(ge=0, lt=1)]
    quantized_margin: Annotated[float, Field(ge=0, lt=1)]
    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    latency_ms: Positive
    megabytes: Positive
    warm_ups: CountOrZero
    timed: Count
    seconds: Positive


class DatasetParams(Config):
    """All parameters of a data set, with its overrides."""

    name: str
    run: RunParams
    prepare: PrepareConfig
    teacher: TeacherConfig
    class_vectors: ClassVectorsParams
    student: StudentConfig
    tuned_student: TeacherConfig | None  # None: no baseline
    evaluate: EvaluateConfig


_STAGES: dict[str, type[Config]] = {
    "prepare": PrepareConfig,
    "teacher": TeacherConfig,
    "class_vectors": ClassVectorsParams,
    "student": StudentConfig,
    "evaluate": EvaluateConfig,
}


class DatasetRow(Config):
    """Overrides of a data set, by stage."""

    prepare: dict[str, Any] = {}
    teacher: dict[str, Any] = {}
    class_vectors: dict[str, Any] = {}
    student: dict[str, Any] = {}
    evaluate: dict[str, Any] = {}

    def overrides(self, stage: str) -> dict[str, Any]:
        """Return the values that override a stage's block.

        Custom images have labels of all classes, unless the row sets another protocol.
        """
        values: dict[str, Any] = getattr(self, stage)
        if stage == "prepare" and values.get("own") is not None:
            return {"protocol": Protocol.ALL_CLASSES, **values}
        return values


class Params(Config):
    """Content of ``params.yaml``."""

    profile: ProfileParams
    run: RunParams
    prepare: PrepareConfig
    teacher: TeacherConfig
    class_vectors: ClassVectorsParams
    student: StudentConfig
    evaluate: EvaluateConfig
    promotion: PromotionParams
    tuned_student: dict[str, dict[str, Any]]  # data set -> keys that replace the teacher's
    cross_validate: dict[str, CrossValidateParams]  # data sets without labelled test images
    search: SearchParams = DEFAULT_SPACE
    datasets: Annotated[dict[str, DatasetRow], Field(min_length=1)]

    def for_dataset(self, name: str, changes: DatasetRow | None = None) -> DatasetParams:
        """Return a data set's parameters: the stages' blocks with its overrides.

        Args:
            name: Of the data set.
            changes: Further overrides, which have precedence.

        Raises:
            UnknownName: The file does not list the data set.
            ValidationError: A further override is invalid.
        """
        if name not in self.datasets:
            raise unknown("data set", name, self.datasets)
        row, more = self.datasets[name], changes or DatasetRow()
        stages = {
            stage: _merge(getattr(self, stage), {**row.overrides(stage), **more.overrides(stage)})
            for stage in _STAGES
        }
        return DatasetParams.model_construct(
            name=name, run=self.run, tuned_student=self._tuned_student(name, stages), **stages
        )

    def _tuned_student(self, name: str, stages: Mapping[str, Any]) -> TeacherConfig | None:
        """Return the teacher's configuration with the student's CLIP and the file's overrides."""
        if name not in self.tuned_student:
            return None
        student: StudentConfig = stages["student"]
        teacher: TeacherConfig = stages["teacher"]
        method = TeacherMethod.PROMPTSRC if teacher.method is TeacherMethod.CLIP else teacher.method
        values = {
            "model": student.model, "weights": student.weights, "original": None, "method": method,
        }  # fmt: skip
        return _merge(teacher, {**values, **self.tuned_student[name]})


_AnyConfig = TypeVar("_AnyConfig", bound=Config)


def _merge(block: _AnyConfig, overrides: Mapping[str, Any]) -> _AnyConfig:
    return validate(type(block), {**block.model_dump(mode="json"), **overrides})


def validate(model: type[_AnyConfig], values: Mapping[str, Any]) -> _AnyConfig:
    """Validate as JSON, whose strict rules accept a list as a tuple and a string as an enum."""
    return model.model_validate_json(json.dumps(values, default=str))


def load_params(path: Path) -> Params:
    """Read and validate a ``params.yaml``, with the overrides of all data sets.

    The file is read as YAML 1.2, as DVC reads it: ``1e-5`` is a number.

    Raises:
        MissingFile: There is no such file.
        BadParams: A key is unknown or missing, or a value has a wrong type or range.
        UnknownName: A data set is not in the catalogue.
    """
    try:
        params = validate(Params, read_mapping(path, Params))
    except ValidationError as error:
        raise bad_params(path, Params, error) from None
    _check_overrides(path, params)
    _check_space(path, params)
    return params


def read_mapping(path: Path, model: type[BaseModel]) -> dict[str, Any]:
    """Read a mapping from a YAML 1.2 file.

    Args:
        path: The file.
        model: Model of its content, for the message.

    Raises:
        MissingFile: There is no such file.
        BadParams: It is not YAML, or holds no keys.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise missing("parameter file", path, "run this where dvc.yaml is") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadParams(f"{path}: cannot be read ({error})") from None
    try:
        content = YAML(typ="safe", pure=True).load(StringIO(text))
        _check_values(content)
    except (YAMLError, ValueError, TypeError, RecursionError) as error:  # of a tag's value, too
        raise BadParams(f"{path}: is not YAML ({_first_problem(error)}); correct it") from None
    if not isinstance(content, dict):
        raise BadParams(f"{path}: holds no keys; expected {', '.join(model.model_fields)}")
    return content


def _check_values(content: object) -> None:
    """Check that YAML content can be written as JSON; an alias counts as often as it is used.

    Raises:
        ValueError: A key is no string, or there are more values than `_MOST_VALUES`, as in a block
            that contains itself.
    """
    waiting, count = [content], 0
    while waiting:
        value = waiting.pop()
        count += 1
        if count > _MOST_VALUES:
            raise ValueError(f"more than {_MOST_VALUES} values, or some that hold themselves")
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str):
                    raise ValueError(f"the key {str(key)[:80]} is no text")
            waiting += value.values()
        elif isinstance(value, (list, tuple, set)):
            waiting += value


def _first_problem(error: Exception) -> str:
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return str(error)[:200]
    return f"{error.problem}, line {error.problem_mark.line + 1}"


def check_row(path: Path, params: Params, row: DatasetRow, where: str) -> None:
    """Validate the overrides of a row.

    Args:
        path: File with the row, for the message.
        params: Parameters with the stages' blocks.
        row: Overrides by stage.
        where: Key of the row in the file.

    Raises:
        BadParams: A key is unknown, or a value has a wrong type or range.
    """
    for stage in _STAGES:
        try:
            _merge(getattr(params, stage), row.overrides(stage))
        except ValidationError as error:
            raise bad_params(path, _STAGES[stage], error, f"{where}.{stage}.") from None


def _check_space(path: Path, params: Params) -> None:
    """Refuse a range of `search` with bounds or choices that its parameter cannot have."""
    for stage in SearchParams.model_fields:
        for key, dimension in getattr(params.search, stage).items():
            for value in dimension.extremes:
                try:
                    _merge(getattr(params, stage), {key: value})
                except ValidationError as error:
                    raise bad_params(path, _STAGES[stage], error, f"search.{stage}.") from None


def is_own_name(name: str) -> bool:
    """Return True if a data set of the user's own images may have this name."""
    return re.fullmatch(r"[A-Za-z0-9_]+", name) is not None


def _check_overrides(path: Path, params: Params) -> None:
    catalogued = dataset_names()
    _check_protocol(path, params.prepare.protocol, "prepare.protocol")
    for name, row in params.datasets.items():
        check_row(path, params, row, f"datasets.{name}")
        merged = _merge(params.prepare, row.overrides("prepare"))
        _check_protocol(path, merged.protocol, f"datasets.{name}.prepare.protocol")
        is_own = row.overrides("prepare").get("own", params.prepare.own) is not None
        if name not in catalogued and not is_own:
            raise unknown(f"data set in {path}:", name, catalogued)
        if is_own and (name in catalogued or not is_own_name(name)):
            raise BadParams(
                f"{path}: datasets.{name} has pictures of your own: give it a name of letters, "
                "digits and underscores that is not in the catalogue"
            )
    for name in params.cross_validate:
        if name not in params.datasets:
            raise unknown(f"data set in {path}: cross_validate:", name, params.datasets)
    for name in params.tuned_student:
        if name not in params.datasets:
            raise unknown(f"data set in {path}: tuned_student:", name, params.datasets)
        try:
            params.for_dataset(name)
        except ValidationError as error:
            raise bad_params(path, TeacherConfig, error, f"tuned_student.{name}.") from None


def _check_protocol(path: Path, protocol: Protocol, key: str) -> None:
    """Refuse a protocol that needs another data set's teacher, which a row cannot name."""
    if protocol.has_source:
        raise BadParams(
            f"{path}: {key} = {protocol} needs a source; give {Protocol.BASE_TO_NOVEL} or"
            f" {Protocol.ALL_CLASSES}, and run it in protocols/"
        )


def bad_params(
    path: Path, model: type[BaseModel], error: ValidationError, where: str = ""
) -> BadParams:
    """Return the error for the first of pydantic's complaints, in one line."""
    complaints = error.errors(include_url=False)
    # A misspelt key is also a missing one: the misspelling says more.
    extra = (error for error in complaints if error["type"] == "extra_forbidden")
    first = next(extra, complaints[0])
    loc = [str(part) for part in first["loc"]]
    key = where + ".".join(loc)
    match first["type"]:
        case "extra_forbidden":
            return _unknown_key(path, key, _fields(model, loc[:-1]))
        case "missing":
            return BadParams(f"{path}: {key} is missing; add {_line_of(key)}")
        case "model_type" | "dict_type":
            return BadParams(f"{path}: {key} = {json.dumps(first['input'])}: give a block of keys")
        case _:
            message = first["msg"].removeprefix("Value error, ")
            lowered = message[0].lower() + message[1:]
            return BadParams(f"{path}: {key} = {json.dumps(first['input'])}: {lowered}")


def _line_of(key: str) -> str:
    """Return the line of a key as in the package's own files, if both have the same."""
    values = []
    for name in ("params.yaml", "paper/params.yaml"):
        value: Any = read_mapping(TEMPLATES / name, Params)
        for part in key.split("."):
            value = value.get(part, {}) if isinstance(value, dict) else {}
        values.append(value)
    if isinstance(values[0], dict) or values[0] != values[1]:
        return "it"
    block, _, name = key.rpartition(".")
    text = values[0] if isinstance(values[0], str) else json.dumps(values[0])
    return f"`{name}: {text}` to the block `{block}`"


def _fields(model: type[BaseModel], loc: list[str]) -> list[str]:
    """Return the valid keys at a location in the file."""
    for part in loc:
        if part in model.model_fields:  # otherwise a data set's name or the index of a list
            model = _block(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _block(annotation: Any) -> type[BaseModel] | None:
    """Return the model in a type: itself, or that of a union, list or mapping; None if none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((block for part in get_args(annotation) if (block := _block(part))), None)


def _unknown_key(path: Path, key: str, valid: list[str]) -> BadParams:
    close = difflib.get_close_matches(key.rpartition(".")[2], valid, n=1)
    guess = f" did you mean '{close[0]}'?" if close else ""
    return BadParams(f"{path}: unknown key '{key}';{guess} known: {', '.join(valid) or 'none'}")
