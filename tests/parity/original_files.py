"""Checkpoints as the original code writes them, made from recordings and tiny models."""

import re
import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import traces
from torch import Tensor
from traces import Trace

from pd_core.core.errors import BadArtifact
from pd_core.models.clip import ClipTowers
from pd_core.models.teacher import Teacher

State = dict[str, Tensor]


PER_TRACE = pytest.mark.parametrize(
    "folder", traces.trace_folders(), ids=lambda folder: folder.name
)

# whose teacher distilled with the prompts that its file holds
PER_TUNED = pytest.mark.parametrize(
    "folder",
    [one for one in traces.trace_folders() if not traces.load(one).untrained_prompts],
    ids=lambda folder: folder.name,
)


def backbone(trace: Trace, clip: str, *, text: bool) -> State:
    """Return the frozen weights by the original's keys."""
    state = {}
    for key, value in trace.tensors.items():
        name = key.removeprefix(f"{clip}/")
        if name == key or name == "token_embedding.rows":
            continue
        if name.startswith("visual."):
            state[f"image_encoder.{name.removeprefix('visual.')}"] = value.float()
        elif name == "logit_scale":
            state[name] = value.float()
        elif text:
            state[f"text_encoder.{name}"] = value.float()
    return state


def under(trace: Trace, place: str) -> State:
    """Return what was recorded at a place, by the original's own keys."""
    return {
        key.removeprefix(place): value
        for key, value in trace.tensors.items()
        if key.startswith(place)
    }


def teacher_state(trace: Trace) -> State:
    frozen = backbone(trace, "clip_teacher", text=True)
    classes = len(trace.info["classnames"])
    length, width = trace.tensors["teacher/gpa/prompt_learner.ctx"].shape
    return {
        **under(trace, "teacher/gpa/"),
        "prompt_learner.token_prefix": torch.ones(classes, 1, width),
        "prompt_learner.token_suffix": torch.ones(classes, 76 - length, width),
        **{
            f"prompt_learner.ZS_{key}": value + 1
            for key, value in frozen.items()
            if key.startswith("image_encoder.")
        },
        **frozen,
    }


def student_state(trace: Trace) -> State:
    last = f"kd/step{trace.student_steps[-1]}/"
    return {
        **under(trace, last + "param/"),
        **under(trace, last + "bn/"),
        **backbone(trace, "clip_student", text=False),
    }


def tiny_state() -> State:
    """Make what the original saves of a teacher on the tiny CLIP: depth 3, length 2, width 32."""
    return {**tiny_prompts("text"), **tiny_prompts("image"), **tiny_backbone()}


def tiny_prompts(branch: str, *, depth: int = 3, length: int = 2, width: int = 32) -> State:
    rows = torch.randn(depth, length, width, generator=torch.Generator().manual_seed(depth))
    deeper = {traces.DEEPER[branch].format(i): rows[i].clone() for i in range(1, depth)}
    return {traces.INPUT[branch]: rows[0].clone(), **deeper}


def tiny_backbone() -> State:
    names = {"visual": "image_encoder", "text": "text_encoder", "logit_scale": "logit_scale"}
    state = {}
    for key, value in tiny.towers().weights().items():
        tower, dot, rest = key.partition(".")
        if key != "text.token_embedding.weight":
            state[names[tower] + dot + rest] = value.clone()
    return state


def tiny_projector(*, width: int = 16, feature_width: int = 24) -> State:
    conv = torch.nn.Conv2d
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        layers = torch.nn.Sequential(
            conv(width, feature_width, 1),
            torch.nn.BatchNorm2d(feature_width),
            torch.nn.ReLU(),
            conv(feature_width, feature_width, 1),
        )
    return {traces.PROJECTOR + key: value for key, value in layers.state_dict().items()}


def tiny_student_state() -> State:
    frozen = {k: v for k, v in tiny_backbone().items() if not k.startswith("text_encoder.")}
    return {**tiny_prompts("image"), **tiny_projector(), **frozen}


def save(path: Path, state: Mapping[str, Any], *, protocol: int = 2, **replaced: Any) -> Path:
    """Write a checkpoint as Dassl does: a scheduler and an optimiser beside the weights."""
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.grad = torch.ones(3)
    optimizer.step()
    module = types.ModuleType("dassl_scheduler")
    scheduler_class = type("ConstantWarmupScheduler", (), {"__module__": module.__name__})
    module.__dict__["ConstantWarmupScheduler"] = scheduler_class
    scheduler = scheduler_class()
    scheduler.optimizer = optimizer
    scheduler.successor = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
    ordered = OrderedDict(state)
    ordered._metadata = OrderedDict(version=1)  # type: ignore[attr-defined]
    content = {
        "state_dict": ordered,
        "epoch": 20,
        "optimizer": optimizer.state_dict(),
        "scheduler": {"successor": scheduler},
        "val_result": 81.5,
        **replaced,
    }
    sys.modules[module.__name__] = module
    try:
        torch.save(content, path, pickle_protocol=protocol)
    finally:
        del sys.modules[module.__name__]
    return path


def refused(make: Callable[..., Any], path: Path, towers: ClipTowers, **rest: Any) -> str:
    """Return the message of a refusal, which is one line and names the file."""
    with pytest.raises(BadArtifact) as caught:
        make(path, towers, **rest)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def assert_tiny_prompts(teacher: Teacher) -> None:
    for branch, prompts in (("text", teacher.text_prompts), ("image", teacher.image_prompts)):
        assert prompts is not None
        expected = torch.stack(list(tiny_prompts(branch).values()))
        assert torch.equal(prompts.tokens, expected)


def assert_matches(message: str, pattern: str) -> None:
    assert re.search(pattern, message), message
