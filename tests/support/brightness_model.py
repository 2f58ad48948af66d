"""A model that needs nothing but NumPy: it tells classes by how bright their pictures are."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from PIL import Image


class Brightness(PythonModel):
    def load_context(self, context: PythonModelContext) -> None:
        text = (Path(context.artifacts["student"]) / "model.json").read_text()
        self.levels: dict[str, float] = json.loads(text)["levels"]

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        top = (params or {}).get("top", 5)
        rows = [self._rank(picture)[:top] for picture in model_input.iloc[:, 0]]
        return pd.DataFrame(
            {
                "names": [[name for name, _ in row] for row in rows],
                "probabilities": [[value for _, value in row] for row in rows],
            }
        )

    def _rank(self, picture: bytes) -> list[tuple[str, float]]:
        mean = float(np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).mean())
        scores = {name: np.exp(-abs(level - mean) / 9) for name, level in self.levels.items()}
        total = sum(scores.values())
        ranked = sorted(scores.items(), key=lambda pair: -pair[1])
        return [(name, float(score / total)) for name, score in ranked]


set_model(Brightness())
