"""CLIP comes from any source without a network, and wrong weights are refused, not warned of."""

import warnings
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pytest
import tiny
import torch
from safetensors.torch import save_file
from torch import Tensor

from pd_core.core.errors import BadArtifact, BadParams, MissingFile, UnknownName
from pd_core.models import clip
from pd_core.models.teacher import Teacher


def test_a_local_file_gives_the_models_features(tmp_path: Path) -> None:
    towers = clip.load_clip("tiny", tiny.weights(tmp_path))

    expected = tiny.towers()
    assert torch.equal(towers.visual(tiny.images(2)), expected.visual(tiny.images(2)))
    tokens = towers.tokenize(["a photo of a cat."])
    assert torch.equal(towers.text(tokens), expected.text(tokens))
    assert (towers.name, towers.image_size, towers.context_length) == ("tiny", 16, 24)
    assert towers.logit_scale == pytest.approx(1 / 0.07, rel=1e-5)
    assert not towers.visual.training
    assert not any(p.requires_grad for p in towers.visual.parameters())


def test_frozen_weights_may_be_half_precision(tmp_path: Path) -> None:
    half = Teacher.untrained(
        clip.load_clip("tiny", tiny.weights(tmp_path), dtype=torch.bfloat16), seed=1
    )
    full = Teacher.untrained(tiny.towers(), seed=1)
    tokens = full.tokens(tiny.NAMES)

    for ours, exact in (
        (half.image_features(tiny.images(3)), full.image_features(tiny.images(3))),
        (half.text_features(tokens), full.text_features(tokens)),
    ):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, exact, rtol=0, atol=0.03)


FORMATS = pytest.mark.parametrize("form", ["plain", "nested", "parallel", "safetensors"])


def stored(form: str, state: dict[str, Tensor], folder: Path) -> Path:
    tiny.register()
    if form == "safetensors":
        save_file(state, folder / "weights.safetensors")
        return folder / "weights.safetensors"
    parallel = {f"module.{key}": value for key, value in state.items()}
    content = {
        "plain": state,
        "nested": {"epoch": 3, "state_dict": state},
        "parallel": {"state_dict": parallel},
    }
    torch.save(content[form], folder / "weights.pt")
    return folder / "weights.pt"


@FORMATS
@pytest.mark.parametrize("text", ["text.", ""])
def test_every_kind_of_file_gives_the_same_towers(form: str, text: str, tmp_path: Path) -> None:
    state = {
        key.replace("text.", text, 1) if key.startswith("text.") else key: value
        for key, value in tiny.model().state_dict().items()
    }

    towers = clip.load_clip("tiny", stored(form, state, tmp_path))

    expected, tokens = tiny.towers(), tiny.towers().tokenize(["a photo of a cat."])
    assert torch.equal(towers.visual(tiny.images(2)), expected.visual(tiny.images(2)))
    assert torch.equal(towers.text(tokens), expected.text(tokens))
    assert towers.logit_scale == expected.logit_scale


@FORMATS
def test_half_precision_files_are_computed_with_in_full(form: str, tmp_path: Path) -> None:
    state = {key: value.half() for key, value in tiny.model().state_dict().items()}

    towers = clip.load_clip("tiny-quickgelu", stored(form, state, tmp_path))

    assert {p.dtype for p in towers.visual.parameters()} == {torch.float32}
    for key, value in towers.weights().items():
        if key != "logit_scale":
            assert torch.equal(value, state[key].float()), key
    assert towers.logit_scale == pytest.approx(float(state["logit_scale"].float().exp()))


def test_an_archive_as_openai_publishes_it_is_read_and_recognised(tmp_path: Path) -> None:
    class Archive(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            model = tiny.model()
            for key, value in model.state_dict().items():
                # Names with dots cannot be buffers of one module: nest them as OpenAI's are.
                _nest(self, key.removeprefix("text.").split("."), value)
            self.register_buffer("input_resolution", torch.tensor(16))

        def forward(self, x: Tensor) -> Tensor:
            return x

    tiny.register()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script: Any = torch.jit.script
        script(Archive()).save(tmp_path / "openai.pt")

    for name in ("tiny", "ViT-B-16"):
        with pytest.raises(BadParams, match=f"OpenAI's.*use model '{name}-quickgelu'"):
            clip.load_clip(name, tmp_path / "openai.pt")
    towers = clip.load_clip("tiny-quickgelu", tmp_path / "openai.pt")
    assert torch.equal(towers.visual.conv1.weight, tiny.towers().visual.conv1.weight)


def _nest(module: torch.nn.Module, parts: list[str], value: Tensor) -> None:
    for part in parts[:-1]:
        if not hasattr(module, part):
            module.add_module(part, torch.nn.Module())
        module = module.get_submodule(part)
    module.register_buffer(parts[-1], value)


def test_openai_weights_need_the_quickgelu_name(tmp_path: Path) -> None:
    """Copies are recognised by their matrices; the rest was published in full precision."""
    tiny.register()
    state = tiny.model().state_dict()
    half = {key: value.half() for key, value in state.items()}
    copy = {
        key: value.half().float() if value.ndim > 1 and "embedding" not in key else value + 1e-5
        for key, value in state.items()
    }
    for name, tensors in (("half", half), ("copy", copy), ("other", state)):
        save_file(tensors, tmp_path / f"{name}.safetensors")

    for model, file in (("tiny", "half"), ("ViT-B-16", "half"), ("tiny", "copy")):
        with pytest.raises(BadParams, match=f"half-prec.*QuickGELU; use model '{model}-quickgelu'"):
            clip.load_clip(model, tmp_path / f"{file}.safetensors")
    assert clip.load_clip("tiny-quickgelu", tmp_path / "half.safetensors").name.endswith("gelu")
    assert clip.load_clip("tiny", tmp_path / "other.safetensors").name == "tiny"


@pytest.mark.parametrize(
    ("name", "tag", "right"),
    [
        ("ViT-B-16", "openai", "ViT-B-16-quickgelu"),
        ("ViT-L-14", "openai", "ViT-L-14-quickgelu"),
        ("ViT-B-16", "dfn2b", "ViT-B-16-quickgelu"),
        ("ViT-B-16", "metaclip_400m", "ViT-B-16-quickgelu"),
        ("ViT-B-32", "laion400m_e32", "ViT-B-32-quickgelu"),
    ],
)
def test_a_tag_with_the_wrong_activation_is_refused_before_anything_is_downloaded(
    name: str, tag: str, right: str
) -> None:
    with pytest.raises(BadParams, match=f"use model '{right}'"):
        clip.load_clip(name, tag)


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("ViT-B-16-quickgelu", "openai"),
        ("ViT-L-14-quickgelu", "openai"),
        ("ViT-B-16-quickgelu", "dfn2b"),
        ("ViT-B-16", "laion2b_s34b_b88k"),
        ("ViT-L-14", "laion2b_s32b_b82k"),
        ("ViT-B-16", "datacomp_xl_s13b_b90k"),
    ],
)
def test_a_tag_is_left_to_open_clip(name: str, tag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def create_model(model: str, **options: Any) -> open_clip.CustomTextCLIP:
        asked.append((model, options))
        return tiny.model()

    monkeypatch.setattr(open_clip, "create_model", create_model)

    towers = clip.load_clip(name, tag)

    # In full precision, and with a text tower of its own.
    options = {"precision": "fp32", "force_custom_text": True, "pretrained_hf": False}
    assert asked == [(name, {"pretrained": tag, **options})]
    assert towers.name == name
    assert torch.equal(towers.visual(tiny.images(2)), tiny.towers().visual(tiny.images(2)))
    assert towers.tokenize(["a cat"]).shape == (1, 77)


def test_a_tag_that_cannot_be_downloaded_gets_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(*_: Any, **__: Any) -> None:
        raise RuntimeError("Failed to download weights\nTraceback ...")

    monkeypatch.setattr(open_clip, "create_model", create_model)

    with pytest.raises(MissingFile, match="downloaded .Failed to download weights.; give a local"):
        clip.load_clip("ViT-B-16", "laion2b_s34b_b88k")


def test_a_tag_that_was_downloaded_once_needs_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.register()
    repository = tmp_path / "models--someone--tiny"
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    save_file(tiny.model(seed=5).state_dict(), snapshot / "open_clip_model.safetensors")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", value=True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    published = {"once": {"hf_hub": "someone/tiny/"}, "fast": {"url": "x", "quick_gelu": True}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", published)

    towers = clip.load_clip("tiny", "once")

    assert torch.equal(towers.visual(tiny.images(2)), tiny.towers(seed=5).visual(tiny.images(2)))
    with pytest.raises(BadParams, match="tag 'fast' was trained with QuickGELU"):
        clip.load_clip("tiny", "fast")


def test_a_tag_of_another_model_is_refused_with_the_tags_there_are() -> None:
    with pytest.raises(MissingFile, match=r"laion2b_s34b_b88k.*\(openai, dfn2b, metaclip"):
        clip.load_clip("ViT-B-16-quickgelu", "laion2b_s34b_b88k")


def test_an_unknown_model_and_missing_weights_are_refused_with_the_choices() -> None:
    with pytest.raises(UnknownName, match="'embedded-teachr'; did you mean 'embedded-teacher'"):
        clip.load_clip("embedded-teachr", None)
    for weights, message in ((None, "quickgelu.*openai"), ("no/such.pt", "'no/such.pt'")):
        with pytest.raises(MissingFile, match=message):
            clip.load_clip("ViT-L-14-quickgelu", weights)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    tiny.register()
    save_file(tiny.model(width=64).state_dict(), tmp_path / "wide.safetensors")

    with pytest.raises(BadArtifact, match="wide.safetensors' for 'tiny' does not fit"):
        clip.load_clip("tiny", tmp_path / "wide.safetensors")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_that_is_no_weights_is_refused_in_one_line(tmp_path: Path, suffix: str) -> None:
    tiny.register()
    path = tmp_path / f"page{suffix}"
    path.write_text("<html>not found</html>")

    with pytest.raises(BadArtifact, match="cannot be read") as caught:
        clip.load_clip("tiny", path)
    assert "\n" not in str(caught.value)


def test_sixty_templates_start_with_the_plain_one() -> None:
    templates = clip.imagenet_templates(60)

    assert templates[0] == "a photo of a {}."
    assert templates[1] == "a bad photo of a {}."
    assert len(set(templates)) == 60
    assert all(template.count("{}") == 1 for template in templates)
