"""Reading ``params.yaml``, merging what data sets override, and saying what is wrong.

A data set's overrides (``datasets.<name>.<stage>``) are merged over the stage's block and checked
as part of it. A stage's block is the configuration of its function.
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
from pd_core.core.options import TeacherMethod
from pd_core.data.catalog.catalogue import PrepareConfig, dataset_names
from pd_core.data.loading.splits import Protocol
from pd_core.evaluation.metrics import EvaluateConfig
from pd_core.training.student.config import StudentConfig
from pd_core.training.teacher.config import TeacherConfig

PARAMS = Path("params.yaml")
"""The profile's parameters, in the folder of its pipeline."""
DATA = Path("data")
"""Where the stages' outputs go, one folder a stage, seen from there."""

_MOST_VALUES = 100_000  # hundreds of times what the shipped files have


class ProfileParams(Config):
    """Which benchmark this file describes."""

    name: Literal["quickstart", "paper"]
    root: str  # the repository's root, seen from this file; dvc.yaml starts stages there


class RunParams(ComputeConfig):
    """What every stage shares."""

    processes: Count
    checkpoint_minutes: Positive
    features_gb: Positive
    features_precision: Literal["fp16", "fp32"]


class ClassVectorsParams(Config):
    """Class vectors need nothing but the teacher."""


class CrossValidateParams(Config):
    """Cross-validation needs nothing but the stages that it repeats."""


class PromotionParams(Config):
    """What a version has to show before it becomes the champion."""

    margin: Annotated[float, Field(ge=0, lt=1)]
    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    latency_ms: Positive
    megabytes: Positive
    warm_ups: CountOrZero
    timed: Count
    seconds: Positive


class DatasetParams(Config):
    """All parameters of one data set, its overrides merged in."""

    name: str
    run: RunParams
    prepare: PrepareConfig
    teacher: TeacherConfig
    class_vectors: ClassVectorsParams
    student: StudentConfig
    tuned_student: TeacherConfig | None  # None where the baseline is not wanted
    evaluate: EvaluateConfig


_STAGES: dict[str, type[Config]] = {
    "prepare": PrepareConfig,
    "teacher": TeacherConfig,
    "class_vectors": ClassVectorsParams,
    "student": StudentConfig,
    "evaluate": EvaluateConfig,
}


class DatasetRow(Config):
    """One data set: its own values for keys of the stages."""

    prepare: dict[str, Any] = {}
    teacher: dict[str, Any] = {}
    class_vectors: dict[str, Any] = {}
    student: dict[str, Any] = {}
    evaluate: dict[str, Any] = {}

    def overrides(self, stage: str) -> dict[str, Any]:
        """Return the values that replace those of a stage's block.

        The user's own pictures have labels of all classes, unless the row says otherwise.
        """
        values: dict[str, Any] = getattr(self, stage)
        if stage == "prepare" and values.get("own") is not None:
            return {"protocol": Protocol.ALL_CLASSES, **values}
        return values


class Params(Config):
    """The whole file."""

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
    datasets: Annotated[dict[str, DatasetRow], Field(min_length=1)]

    def for_dataset(self, name: str, changes: DatasetRow | None = None) -> DatasetParams:
        """Merge a data set's overrides over the stages' blocks.

        Args:
            name: Of the data set.
            changes: Further overrides, which go before the data set's own.

        Raises:
            UnknownName: The file does not list the data set.
            ValidationError: A further override is none that the stage has.
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
        """Take the teacher's numbers, the student's CLIP, and what the file says besides."""
        if name not in self.tuned_student:
            return None
        student: StudentConfig = stages["student"]
        teacher: TeacherConfig = stages["teacher"]
        method = TeacherMethod.PROMPTSRC if teacher.method is TeacherMethod.CLIP else teacher.method
        given = {
            "model": student.model, "weights": student.weights, "original": None, "method": method,
        }  # fmt: skip
        return _merge(teacher, {**given, **self.tuned_student[name]})


_AnyConfig = TypeVar("_AnyConfig", bound=Config)


def _merge(block: _AnyConfig, overrides: Mapping[str, Any]) -> _AnyConfig:
    return validate(type(block), {**block.model_dump(mode="json"), **overrides})


def validate(model: type[_AnyConfig], values: Mapping[str, Any]) -> _AnyConfig:
    """Validate as JSON: the strict rules for it accept a list as a tuple and text as an enum."""
    return model.model_validate_json(json.dumps(values, default=str))


def load_params(path: Path) -> Params:
    """Read and check a ``params.yaml``, with every data set's overrides.

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
    return params


def read_mapping(path: Path, model: type[BaseModel]) -> dict[str, Any]:
    """Read a file of keys as YAML 1.2.

    Args:
        path: The file.
        model: What it should hold, for the message.

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
    """Refuse what could not be written out as JSON; an alias counts as often as it is used.

    Raises:
        ValueError: A key is no text, or there are more values than `_MOST_VALUES`, as in a block
            that holds itself.
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
    """Make sure that the stages have the keys of a row, and that its values are possible.

    Args:
        path: The file that holds the row.
        params: Whose stages.
        row: Keys by stage.
        where: The row's own key in the file.

    Raises:
        BadParams: A key is unknown, or a value has a wrong type or range.
    """
    for stage in _STAGES:
        try:
            _merge(getattr(params, stage), row.overrides(stage))
        except ValidationError as error:
            raise bad_params(path, _STAGES[stage], error, f"{where}.{stage}.") from None


def _check_overrides(path: Path, params: Params) -> None:
    known = dataset_names()
    _check_protocol(path, params.prepare.protocol, "prepare.protocol")
    for name, row in params.datasets.items():
        check_row(path, params, row, f"datasets.{name}")
        mine = _merge(params.prepare, row.overrides("prepare"))
        _check_protocol(path, mine.protocol, f"datasets.{name}.prepare.protocol")
        is_own = row.overrides("prepare").get("own", params.prepare.own) is not None
        if name not in known and not is_own:
            raise unknown(f"data set in {path}:", name, known)
        if is_own and (name in known or not re.fullmatch(r"[A-Za-z0-9_]+", name)):
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
    """Refuse a protocol whose teacher is another data set's: one row cannot say whose."""
    if protocol.has_source:
        raise BadParams(
            f"{path}: {key} = {protocol} needs a source; give {Protocol.BASE_TO_NOVEL} or"
            f" {Protocol.ALL_CLASSES}, and run it in protocols/"
        )


def bad_params(
    path: Path, model: type[BaseModel], error: ValidationError, where: str = ""
) -> BadParams:
    """Put the first of pydantic's complaints into one line."""
    complaints = error.errors(include_url=False)
    # A misspelt key is also a missing one: the misspelling says more.
    first = next((one for one in complaints if one["type"] == "extra_forbidden"), complaints[0])
    loc = [str(part) for part in first["loc"]]
    key = where + ".".join(loc)
    match first["type"]:
        case "extra_forbidden":
            return _unknown_key(path, key, _fields(model, loc[:-1]))
        case "missing":
            return BadParams(f"{path}: {key} is missing; add it")
        case "model_type" | "dict_type":
            return BadParams(f"{path}: {key} = {json.dumps(first['input'])}: give a block of keys")
        case _:
            message = first["msg"].removeprefix("Value error, ")
            lowered = message[0].lower() + message[1:]
            return BadParams(f"{path}: {key} = {json.dumps(first['input'])}: {lowered}")


def _fields(model: type[BaseModel], loc: list[str]) -> list[str]:
    """Names of the keys that are valid at a place in the file."""
    for part in loc:
        if part in model.model_fields:  # else it is a data set's name, or a place in a list
            model = _block(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _block(annotation: Any) -> type[BaseModel] | None:
    """Find the block in a type: itself, one of its choices, or what its list or mapping holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _block(part))), None)


def _unknown_key(path: Path, key: str, known: Mapping[str, Any] | list[str]) -> BadParams:
    close = difflib.get_close_matches(key.rpartition(".")[2], known, n=1)
    guess = f" did you mean '{close[0]}'?" if close else ""
    valid = ", ".join(known) or "none"
    return BadParams(f"{path}: unknown key '{key}';{guess} known: {valid}")
