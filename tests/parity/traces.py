"""Recorded numbers of the original code, under our names.

A folder of recordings has a folder for each configuration (`trace.json`, `trace.safetensors`), and
may have `splits.json` and `transforms/`. `PD_PARITY_DIR` names a folder besides the repository's.
"""

import json
import os
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import openai_clip
import torch
from safetensors.torch import load_file
from torch import Tensor

from pd_core.core.options import TeacherMethod
from pd_core.models.clip import ClipTowers
from pd_core.models.prompts import DeepPrompts
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher

OWN = Path(__file__).parent / "data"
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
    further = os.environ.get("PD_PARITY_DIR")
    return [OWN, Path(further)] if further else [OWN]


def files(name: str) -> list[Path]:
    """Return every file of a name in the folders of recordings, however deep."""
    return [path for root in folders() for path in sorted(root.rglob(name))]


def trace_folders() -> list[Path]:
    """Return the folder of every recorded configuration."""
    return [path.parent for path in files("trace.json")]


@cache
def load(folder: Path, *, steps: int | None = None) -> "Trace":
    """Read a recording once; or only its first steps."""
    return Trace(folder, steps=steps)


class Trace:
    """One recorded configuration."""

    def __init__(self, folder: Path, *, steps: int | None = None) -> None:
        self.name = folder.name
        self._limit = steps
        self._folder = folder
        self.info: dict[str, Any] = json.loads((folder / "trace.json").read_text())

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return load_file(self._folder / "trace.safetensors")

    @cached_property
    def teacher_towers(self) -> ClipTowers:
        return self._towers("clip_teacher/")

    @cached_property
    def student_towers(self) -> ClipTowers:
        return self._towers("clip_student/")

    @property
    def wide(self) -> bool:
        """True if the wider tolerances of distillation apply."""
        return bool(self.info["config"]["k_lr"] >= WIDE_FROM)

    @property
    def untrained_prompts(self) -> list[str]:
        """Names of the distilling teacher's prompts that were random and not recorded.

        The original loads a teacher that is shallower than its hard-coded depth; ours refuses.
        """
        return list(self.info.get("teacher_in_kd_extra_prompts_not_in_checkpoint", []))

    @property
    def teacher_steps(self) -> list[int]:
        """The steps of teacher tuning whose tensors were recorded."""
        return self._steps("teacher")

    @property
    def student_steps(self) -> list[int]:
        """The steps of distillation whose tensors were recorded."""
        return self._steps("kd")

    def step(self, stage: str, number: int) -> dict[str, Any]:
        """Return the recorded row of a step."""
        rows: list[dict[str, Any]] = self.info[f"{stage}_steps"]
        return next(row for row in rows if row["step"] == number)

    def last_step(self, stage: str, epoch: int) -> int | None:
        """Return the last step of an epoch, or None if it was not recorded."""
        rows = self.info[f"{stage}_steps"]
        steps: dict[int, list[int]] = {}
        for row in rows:
            steps.setdefault(row["epoch"], []).append(row["step"])
        numbers = steps.get(epoch, [])
        complete = bool(numbers) and len(numbers) == len(steps[min(steps)])
        return max(numbers) if complete and max(numbers) in self._steps(stage) else None

    def before(self, stage: str, step: int, kind: str) -> str:
        """Return the place of the values before a step: the start, or after step - 1."""
        return f"{stage}/init/" if step == 1 else f"{stage}/step{step - 1}/{kind}/"

    def rows(self, place: str, branch: str) -> Tensor:
        """Stack the prompts of one tower: (depth, n, W)."""
        rows = [self.tensors[place + INPUT[branch]]]
        while (key := place + DEEPER[branch].format(len(rows))) in self.tensors:
            rows.append(self.tensors[key])
        return torch.stack(rows).float()

    def teacher_values(self, place: str) -> dict[str, Tensor]:
        """Return values of the teacher's parameters, by our names."""
        return {f"{branch}_prompts.tokens": self.rows(place, branch) for branch in INPUT}

    def student_values(self, place: str) -> dict[str, Tensor]:
        """Return values of the student's parameters, by our names."""
        values = {"image_prompts.tokens": self.rows(place, "image")}
        return values | self.projector_values(place)

    def projector_values(self, place: str) -> dict[str, Tensor]:
        """Return values of the projector; 1x1 convolutions become matrices."""
        start = place + PROJECTOR
        return {
            "projector." + key.removeprefix(start): value.flatten(1) if value.ndim == 4 else value
            for key, value in self.tensors.items()
            if key.startswith(start)
        }

    def teacher(self, place: str) -> Teacher:
        """Make the teacher with recorded prompts."""
        prompts = {branch: DeepPrompts.of(self.rows(place, branch)) for branch in INPUT}
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

    def _steps(self, stage: str) -> list[int]:
        numbers = sorted(row["step"] for row in self.info[f"{stage}_steps"])
        recorded = [n for n in numbers if f"{stage}/step{n}/image" in self.tensors]
        return recorded[: self._limit]

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
        return openai_clip.towers({**state, "token_embedding.weight": table})
