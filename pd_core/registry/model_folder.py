"""A student's bundle as a folder that MLflow loads: no pickle, no path of this machine."""

from __future__ import annotations

import base64
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

_SCRIPT = Path(__file__).with_name("student_model.py")
_ARTIFACT = "student"  # what the script calls it
_REQUIREMENTS = ("mlflow", "numpy", "pandas", "pillow", "safetensors", "torch")


def save(folder: Path, bundle: Path, example: bytes) -> None:
    """Make the model's folder.

    Args:
        folder: to make; what MLflow notes of this machine's paths is taken out again.
        bundle: see `pd_core.bundle`.
        example: a picture file's bytes, the model's input example.
    """
    with warnings.catch_warnings():  # MLflow's own, about its own type hints
        warnings.simplefilter("ignore")
        from mlflow import pyfunc
        from mlflow.models import Model

        pyfunc.save_model(
            str(folder),
            python_model=str(_SCRIPT),
            artifacts={_ARTIFACT: str(bundle)},
            signature=signature(),
            input_example=[base64.b64encode(example).decode()],
            pip_requirements=requirements(),
        )
    description = Model.load(str(folder))
    flavour = description.flavors["python_function"]
    flavour["model_code_path"] = _SCRIPT.name
    flavour["artifacts"][_ARTIFACT]["uri"] = _ARTIFACT
    description.save(str(folder / "MLmodel"))


def requirements() -> list[str]:
    """Pin what the model needs to run, without the build that a wheel's version may name."""
    return [f"{name}=={version(name).partition('+')[0]}" for name in _REQUIREMENTS]


def signature() -> ModelSignature:
    """Describe input, output and parameters; the input may be text or bytes, so of any type."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType, Array

    anything: Any = AnyType
    outputs: list[Any] = [
        ColSpec(Array(DataType.string), "names"),
        ColSpec(Array(DataType.double), "probabilities"),
    ]
    return ModelSignature(
        inputs=Schema([ColSpec(anything())]),
        outputs=Schema(outputs),
        params=ParamSchema([ParamSpec("top", DataType.long, 5)]),
    )
