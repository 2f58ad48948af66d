"""Configuration of the student."""

from typing import Annotated

from pydantic import Field

from pd_core.core.config import ClipConfig, Config, Positive
from pd_core.core.options import Computed, Form, Selection, TeacherWeighting, TextFeatures, Trained
from pd_core.training.loop.config import ImagePromptConfig, OptimConfig, ViewConfig

LEAST_BATCH = 2  # of batch normalisation


class FurtherTeacher(Config):
    """A teacher beside the first; a key left out is that of the first, or the zero-shot model."""

    folder: str | None = None  # with its `teacher.safetensors`
    model: str | None = None
    weights: str | None = None


class StudentConfig(ImagePromptConfig, OptimConfig, ViewConfig, ClipConfig):
    """The student's prompts and projector, distilled on unlabelled pictures."""

    batch_size: Annotated[int, Field(ge=LEAST_BATCH)]
    form: Form  # what the student imitates
    temperature: Positive  # of both softmaxes
    kd_weight: Positive  # of the loss
    trained: Trained
    text_features: TextFeatures  # what the student is compared with
    projector_layers: Annotated[int, Field(ge=1, le=3)]  # linear ones
    further_teachers: tuple[FurtherTeacher, ...]
    teacher_weighting: TeacherWeighting
    teacher_targets: Computed  # when the teachers see the views
    selection: Selection  # of the epoch
