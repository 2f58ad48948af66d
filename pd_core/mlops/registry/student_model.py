"""The student as an MLflow model: MLflow copies this file and runs it to load the model.

It needs nothing of the project: the student's code lies with its weights. Input: the column `image`
of a DataFrame or dictionary, each image base64 text, encoded bytes, a `pathlib.Path` or an array
(H, W, 3). Text is never a path: requests to a server contain text, and must not read its files.
Output: a DataFrame with the lists `names` and `probabilities` per row, the likeliest first.
Parameter: `top`, the number of names at most.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import importlib
import sys
from collections.abc import Mapping
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext

ARTIFACT = "student"  # the folder's name among the model's artifacts
CODE = "promptkd_student"  # the code in it
DEFAULT_TOP = 5


class StudentModel(PythonModel):
    """MLflow model around a `PortableStudent`, which is loaded by `load_context`."""

    student: Any

    def load_context(self, context: PythonModelContext) -> None:
        """Load the student that lies with the model."""
        folder = Path(context.artifacts[ARTIFACT])
        self.student = _code(folder / CODE).PortableStudent.load(folder)

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002 MLflow's signature
        model_input: pd.DataFrame,
        params: Mapping[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Classify the images of the first column.

        Raises:
            MlflowException: an image cannot be read; MLflow's server returns 400.
        """
        top = (params or {}).get("top", DEFAULT_TOP)
        images = [_image(value) for value in _column(model_input)]
        try:
            rankings = self.student.classify_many(images, top=top)
        except ValueError as error:
            raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from None
        return pd.DataFrame(
            {
                "names": [[name for name, _ in ranking] for ranking in rankings],
                "probabilities": [[value for _, value in ranking] for ranking in rankings],
            }
        )


def _column(model_input: pd.DataFrame) -> list[Any]:
    """Return the images; MLflow puts a dictionary's list of texts into a single cell."""
    values = list(model_input.iloc[:, 0])
    if len(values) == 1 and isinstance(values[0], list):
        texts = [item for item in values[0] if isinstance(item, str)]
        return texts or values
    return values


def _image(value: Any) -> Any:
    """Return an image as given; base64 text as bytes, nested lists as an array."""
    if isinstance(value, str):
        return _decoded(value)
    if not isinstance(value, list):
        return value
    try:
        array = np.asarray(value)
        return array.astype(np.uint8) if array.min() >= 0 and array.max() <= 255 else array
    except (TypeError, ValueError) as error:
        raise MlflowException(
            f"a list that is no array of (H, W, 3) from 0 to 255 ({error})", INVALID_PARAMETER_VALUE
        ) from None


def _decoded(text: str) -> bytes:
    """Decode base64 text or a data URL."""
    try:
        encoded = text.partition(",")[2] if text.startswith("data:") else text
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise MlflowException(
            "a text that is not base64; give an image file's bytes in base64, or in Python "
            "pathlib.Path for a file",
            INVALID_PARAMETER_VALUE,
        ) from None


def _code(folder: Path) -> Any:
    """Import the student's code under a unique name: versions may differ in it."""
    files = sorted(folder.glob("*.py"))
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    name = f"{CODE}_{digest[:16]}"
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # the folder stays as it is
    try:
        if name not in sys.modules:
            spec = spec_from_file_location(
                name, folder / "__init__.py", submodule_search_locations=[str(folder)]
            )
            if spec is None or spec.loader is None:
                raise ImportError(f"no code in '{folder}'")
            sys.modules[name] = package = module_from_spec(spec)
            spec.loader.exec_module(package)
        return importlib.import_module(f"{name}.student")
    finally:
        sys.dont_write_bytecode = writes


set_model(StudentModel())
