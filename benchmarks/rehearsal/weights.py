"""Random weights of open_clip's models, in files."""

from __future__ import annotations

from pathlib import Path


def write(model: str, folder: Path) -> Path:
    """Write random weights of a model, unless they are there.

    The file's name has OpenAI's tag, whose preprocessing they get.
    """
    import torch
    from safetensors.torch import save_file

    from pd_core.models.clip import build

    file = folder / f"{model}.openai.safetensors"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            save_file(build(model).state_dict(), partial)
        partial.rename(file)
    return file
