"""Configuration of the teacher."""

from typing import Annotated

from pydantic import AfterValidator, Field

from pd_core.core.config import ClipConfig, Config, Count, NotNegative, Positive
from pd_core.core.options import Computed, TeacherMethod
from pd_core.training.loop.config import ImagePromptConfig, OptimConfig, ViewConfig


def _with_gap(template: str) -> str:
    if template.count("{}") != 1:
        raise ValueError("write {} once, where the class name goes")
    return template


class OriginalParams(Config):
    """A teacher checkpoint of the published code."""

    path: Annotated[str, Field(min_length=1)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]  # DVC does not watch the file


class TeacherConfig(ImagePromptConfig, OptimConfig, ViewConfig, ClipConfig):
    """The teacher's prompts, tuned on few-shot labels."""

    method: TeacherMethod
    original: OriginalParams | None  # imported instead of a training
    template: Annotated[str, AfterValidator(_with_gap)]  # text of a class
    text_length: Count  # prompts per layer of the text tower
    text_depth: Count  # layers of the text tower with prompts
    text_loss_weight: NotNegative  # of PromptSRC's terms, as the two that follow
    image_loss_weight: NotNegative
    logits_loss_weight: NotNegative  # of the divergence
    gpa_mean: Positive  # epoch that counts most in PromptSRC's final average
    gpa_std: Positive  # how fast the others count less, in epochs
    templates: Count  # of OpenAI's, that the frozen text features average
    text_memory_gb: Positive
    """GiB for the text tower's activations in each process; what takes more is recomputed in the
    backward pass. The gradients are exact in any case."""
    frozen_features: Computed  # when those of the images are computed
