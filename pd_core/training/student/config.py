"""Configuration of the student."""

from typing import Annotated

from pydantic import Field

from pd_core.core.config import ClipConfig, Config, Positive
from pd_core.core.options import Computed, Form, Selection, TeacherWeighting, TextFeatures, Trained
from pd_core.training.loop.config import ImagePromptConfig, OptimConfig, ViewConfig

LEAST_BATCH = 2  # of batch normalisation


class FurtherTeacher(Config):
    """A teacher beside the first; keys left out are the first teacher's, or zero-shot."""

    folder: str | None = None  # of a `teacher.safetensors`
    model: str | None = None
    weights: str | None = None


class StudentConfig(ImagePromptConfig, OptimConfig, ViewConfig, ClipConfig):
    """The student's prompts and projector, distilled on unlabelled images."""

    batch_size: Annotated[int, Field(ge=LEAST_BATCH)]
    form: Form  # of the targets
    temperature: Positive  # of both softmaxes
    kd_weight: Positive  # of the loss
    trained: Trained
    text_features: TextFeatures  # that the student is compared with
    projector_layers: Annotated[int, Field(ge=1, le=3)]  # linear
    further_teachers: tuple[FurtherTeacher, ...]
    teacher_weighting: TeacherWeighting
    teacher_targets: Computed  # when they are computed
    selection: Selection  # of the epoch
