"""Measure all models of open_clip, and write their table for the package and `docs/models.md`.

Run it after an update of open_clip: ``python -m recipes.model_table`` (ten minutes). Models are
built without weights, on torch's device `meta`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import nn
from torch.export import Dim
from torch.utils.flop_counter import FlopCounterMode

from pd_core.models import model_table, towers
from pd_core.reporting.model_table import markdown

PAGE = Path(__file__).resolve().parents[1] / "docs" / "models.md"
TABLE = "| model |"
"""Start of the page's table, which is its end."""


def build(name: str) -> tuple[nn.Module, nn.Module | None]:
    """Build a model's image tower and text tower; None for one that has to be downloaded."""
    config = open_clip.get_model_config(name)
    is_downloaded = "hf_model_name" in config["text_cfg"]
    with torch.device("meta"):
        model = open_clip.CustomTextCLIP(
            embed_dim=config["embed_dim"],
            vision_cfg=config["vision_cfg"],
            text_cfg={} if is_downloaded else config["text_cfg"],
            quick_gelu=config.get("quick_gelu", False),
        )
    model.eval().requires_grad_(requires_grad=False)
    return model.visual, None if is_downloaded else model.text


def measure(name: str, visual: nn.Module, text: nn.Module | None) -> dict[str, Any]:
    """Return a model's values in the package's file, but for `onnx`."""
    images = _images(visual, 1)
    with FlopCounterMode(display=False) as counter:
        visual(images)
    config = open_clip.get_model_config(name)["text_cfg"]
    return {
        "image_size": images.shape[-1],
        "image_mparams": _millions(visual),
        "text_mparams": None if text is None else _millions(text),
        "gflops": round(counter.get_total_flops() / 1e9, 1),
        "teacher": towers.teacher_methods(visual, text),
        "student": towers.trained_parts(visual),
        "text_model": config.get("hf_model_name"),
        "tokenizer": config.get("hf_tokenizer_name"),
    }


def has_onnx(visual: nn.Module) -> bool:
    """Return True if torch can export an image tower to ONNX, for any number of images."""
    batch = {0: Dim("batch", min=1)}
    try:
        program = torch.export.export(
            visual, (_images(visual, 2),), dynamic_shapes=(batch,), strict=False
        )
        torch.onnx.export(program, dynamo=True, optimize=False, verbose=False)
    except Exception as error:  # torch's exporters raise many kinds
        sys.stderr.write(f"{error}\n")
        return False
    return True


def page(text: str) -> str:
    """Return the text of the page with the present table."""
    rows = list(model_table.model_rows().values())
    return text.partition(TABLE)[0] + markdown(rows) + "\n"


def _images(visual: Any, count: int) -> torch.Tensor:
    size = visual.image_size
    height, width = size if isinstance(size, tuple) else (size, size)
    return torch.empty(count, 3, height, width, device="meta")


def _millions(module: nn.Module) -> float:
    return round(sum(weights.numel() for weights in module.parameters()) / 1e6, 1)


def main() -> None:
    """Write the package's file and the page."""
    exports: dict[frozenset[str], bool] = {}  # by the kinds of modules: one of each is exported
    lines = []
    for name in open_clip.list_models():
        visual, text = build(name)
        kind = frozenset(type(module).__name__ for module in visual.modules())
        if kind not in exports:
            exports[kind] = has_onnx(visual)
        values = {**measure(name, visual, text), "onnx": exports[kind]}
        lines.append(f"{json.dumps(name)}: {json.dumps(values)}")
        sys.stderr.write(f"{lines[-1]}\n")
    model_table.FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    PAGE.write_text(page(PAGE.read_text()))


if __name__ == "__main__":
    main()
