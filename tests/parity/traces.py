"""Recorded numbers of the original code, under our names.

A folder of recordings holds one sub-folder per configuration (`trace.json` and
`trace.safetensors`), and may hold `splits.json` and `transforms/`. The ones of
this repository always count; `PD_PARITY_DIR` names a further folder.
"""

import json
import os
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pd_core.models import clip
from pd_core.models.clip import ClipTowers
from pd_core.models.prompts import DeepPrompts
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher, TeacherMethod

VOCABULARY = 49_408
WIDE_FROM = 0.005  # distillation rate from which rounding errors grow faster

# The original's name of each layer's prompts: at the input, and at block i.
INPUT = {"text": "prompt_learner.ctx", "image": "image_encoder.VPT"}
DEEPER = {
    "text": "text_encoder.transformer.resblocks.{}.VPT_shallow",
    "image": "image_encoder.transformer.resblocks.{}.VPT_shallow",
}
PROJECTOR = "VPT_image_trans.conv1."


def folders() -> list[Path]:
    """Return the folders of recordings."""
    own = Path(__file__).parent / "data"
    further = os.environ.get("PD_PARITY_DIR")
    return [own, Path(further)] if further else [own]


def trace_folders() -> list[Path]:
    """Return the folder of every recorded configuration."""
    return [path.parent for root in folders() for path in sorted(root.glob("*/trace.json"))]


@cache
def load(folder: Path) -> "Trace":
    """Read a recording once."""
    return Trace(folder)


class Trace:
    """One recorded configuration."""

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        self.info: dict[str, Any] = json.loads((folder / "trace.json").read_text())
        self.tensors = load_file(folder / "trace.safetensors")

    @cached_property
    def teacher_towers(self) -> ClipTowers:
        return self._towers("clip_teacher/")

    @cached_property
    def student_towers(self) -> ClipTowers:
        return self._towers("clip_student/")

    @property
    def wide(self) -> bool:
        """Whether the wider tolerances of distillation apply."""
        return bool(self.info["config"]["k_lr"] >= WIDE_FROM)

    @property
    def teacher_steps(self) -> range:
        return range(1, len(self.info["teacher_steps"]) + 1)

    @property
    def student_steps(self) -> range:
        return range(1, len(self.info["kd_steps"]) + 1)

    def before(self, stage: str, step: int, kind: str) -> str:
        """Return the place of what was recorded before a step: at the start, or after step - 1."""
        return f"{stage}/init/" if step == 1 else f"{stage}/step{step - 1}/{kind}/"

    def rows(self, place: str, branch: str) -> Tensor:
        """Stack the prompts of one tower: (depth, n, W)."""
        rows = [self.tensors[place + INPUT[branch]]]
        while (key := place + DEEPER[branch].format(len(rows))) in self.tensors:
            rows.append(self.tensors[key])
        return torch.stack(rows).float()

    def teacher_values(self, place: str) -> dict[str, Tensor]:
        """Return what belongs to the teacher's parameters, by our names."""
        return {f"{branch}_prompts.tokens": self.rows(place, branch) for branch in INPUT}

    def student_values(self, place: str) -> dict[str, Tensor]:
        """Return what belongs to the student's parameters, by our names."""
        values = {"image_prompts.tokens": self.rows(place, "image")}
        return values | self.projector_values(place)

    def projector_values(self, place: str) -> dict[str, Tensor]:
        """Return what belongs to the projector; 1x1 convolutions become matrices."""
        start = place + PROJECTOR
        return {
            "projector." + key.removeprefix(start): value.flatten(1) if value.ndim == 4 else value
            for key, value in self.tensors.items()
            if key.startswith(start)
        }

    def teacher(self, place: str) -> Teacher:
        """Make the teacher with recorded prompts."""
        prompts = {branch: _prompts(self.rows(place, branch)) for branch in INPUT}
        return Teacher(
            self.teacher_towers, prompts["text"], prompts["image"], method=TeacherMethod.PROMPTSRC
        )

    def final_teacher(self) -> Teacher:
        """Make the teacher after Gaussian averaging, the one that distils."""
        return self.teacher("teacher/gpa/")

    def student_before(self, step: int) -> Student:
        """Make the student as it was before a step, in training mode."""
        return self._student("kd/init/" if step == 1 else f"kd/step{step - 1}/").train()

    def student_after(self, step: int) -> Student:
        """Make the student as it was after a step, in evaluation mode."""
        return self._student(f"kd/step{step}/").eval()

    def _student(self, place: str) -> Student:
        first = place.endswith("init/")
        values = self.student_values(place if first else place + "param/")
        statistics = {} if first else self.projector_values(place + "bn/")
        depth, length, _ = values["image_prompts.tokens"].shape
        width = values["projector.3.weight"].shape[0]
        student = Student.untrained(
            self.student_towers, feature_width=width, depth=depth, length=length
        )
        student.load_state_dict(values | statistics)
        return student

    def _towers(self, start: str) -> ClipTowers:
        state = {
            key.removeprefix(start): value.float()
            for key, value in self.tensors.items()
            if key.startswith(start)
        }
        rows = state.pop("token_embedding.rows")
        table = torch.zeros(VOCABULARY, rows.shape[1])
        table[self.tensors["token_row_ids"].long()] = rows
        return clip.from_openai_state_dict({**state, "token_embedding.weight": table})


def _prompts(rows: Tensor) -> DeepPrompts:
    prompts = DeepPrompts(*rows.shape)
    prompts.tokens.data.copy_(rows)
    return prompts
