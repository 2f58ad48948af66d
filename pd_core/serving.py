"""The student as an MLflow model: MLflow copies this file and runs it to load the model.

Input: a DataFrame, Series or list with one picture per row, each base64 text, encoded bytes or a
path. Output: a DataFrame with the lists `names` and `probabilities` per row, the likeliest first.
Parameter: `top`, how many names at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from pd_core.errors import PdError
from pd_core.predictor import Predictor, load_student

ARTIFACT = "student"  # the bundle's name among the model's artifacts
DEFAULT_TOP = 5


class StudentModel(PythonModel):
    """Answers MLflow's calls with a `Predictor`."""

    _predictor: Predictor

    def load_context(self, context: PythonModelContext) -> None:
        """Load the bundle that lies with the model."""
        self._predictor = load_student(context.artifacts[ARTIFACT])

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002 MLflow's signature
        model_input: pd.DataFrame,
        params: Mapping[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Classify the pictures of the first column.

        Raises:
            MlflowException: a picture cannot be read; MLflow's server answers 400.
        """
        top = (params or {}).get("top", DEFAULT_TOP)
        try:
            rankings = self._predictor.classify_many(model_input.iloc[:, 0].tolist(), top=top)
        except PdError as error:
            raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from None
        return pd.DataFrame(
            {
                "names": [[name for name, _ in ranking] for ranking in rankings],
                "probabilities": [[value for _, value in ranking] for ranking in rankings],
            }
        )


set_model(StudentModel())
