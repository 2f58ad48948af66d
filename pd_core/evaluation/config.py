"""Configuration of the evaluation."""

from typing import Annotated, Literal

from pydantic import Field

from pd_core.core.config import Config, Count


class EvaluateConfig(Config):
    """Accuracy of everybody."""

    split: Literal["test", "val"]  # val: to choose recipes by
    batch_size: Count  # images per step; memory only
    folds: Annotated[int, Field(ge=2)]  # of the cross-validation, where no test image has a label
