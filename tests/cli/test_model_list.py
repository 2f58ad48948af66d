"""promptkd models: the models of open_clip, their roles, preprocessing and weights."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pytest
from typer.testing import CliRunner

from pd_core.cli import model_list
from pd_core.core.errors import BadParams, PdError, UnknownName
from pd_core.models.model_table import model_rows

EVA = "EVA02-L-14:merged2b_s4b_b131k"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder whose data root is `data/raw`, with an empty cache of open_clip."""
    monkeypatch.chdir(tmp_path)
    for variable in ("PD_DATA_ROOT", "PD_MIRROR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def models(*arguments: str) -> str:
    return CliRunner().invoke(model_list.app, arguments, catch_exceptions=False).stdout


def shown(model: str, *arguments: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(models("show", model, "--json", *arguments))
    return content


def test_all_models_are_listed_with_their_tags_in_80_columns() -> None:
    lines = models("list").splitlines()

    assert "…" not in "".join(lines)
    assert max(map(len, lines)) == 80
    words = {line.split()[0] for line in lines if line.strip()}
    assert set(model_rows()) <= words
    assert {tag for _, tag in open_clip.list_pretrained()} <= words


def test_a_part_of_the_name_selects_models() -> None:
    names = [row["name"] for row in json.loads(models("list", "mobileclip", "--json"))]

    assert names == [name for name in model_rows() if "MobileCLIP" in name]
    assert len(names) > 5


def test_a_convolutional_student_has_no_prompts_and_its_teacher_only_those_of_texts() -> None:
    (row,) = json.loads(models("list", "convnext_tiny", "--json"))

    assert row["teacher"] == ["coop", "clip"]
    assert "prompts_and_projector" not in row["student"]
    assert row["tags"] == []


def test_a_downloaded_text_tower_leaves_a_zero_shot_teacher_of_unknown_size() -> None:
    text = models("show", "xlm-roberta-base-ViT-B-32")

    assert "downloaded (xlm-roberta-base of transformers)" in text
    assert shown("xlm-roberta-base-ViT-B-32")["teacher"] == ["clip"]


def test_the_preprocessing_of_a_tag_is_open_clips() -> None:
    content = shown("ViT-H-14-quickgelu:dfn5b")

    assert list(content["preprocessing"]) == ["dfn5b"]
    assert content["preprocessing"]["dfn5b"]["resize_mode"] == "squash"
    assert ":dfn5b               224 pixels, squash, bicubic, mean 0.4815" in models(
        "show", "ViT-H-14-quickgelu:dfn5b"
    )


def test_without_a_tag_all_tags_are_shown() -> None:
    content = shown("ViT-L-14")

    assert list(content["preprocessing"]) == content["tags"]
    assert content["preprocessing"]["laion2b_s32b_b82k"]["mean"] == [0.5, 0.5, 0.5]
    assert content["weights"] == {}


def test_weights_are_looked_for_in_the_data_root_the_mirror_and_open_clips_cache(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "EVA02-L-14.merged2b_s4b_b131k.safetensors"
    before = shown(EVA)["weights"]
    file = place / "data" / "raw" / "weights" / name
    file.parent.mkdir(parents=True)
    file.touch()
    monkeypatch.setenv("PD_MIRROR", "s3://bucket/mine")
    repository = place / "hub" / "models--timm--eva02_large_patch14_clip_224.merged2b_s4b_b131k"
    cached = repository / "snapshots" / "0123abcd" / "open_clip_model.safetensors"
    cached.parent.mkdir(parents=True)
    cached.touch()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")

    after = shown(EVA)["weights"]

    assert before["file"] == f"data/raw/weights/{name} (missing; `promptkd weights fetch {name}`)"
    assert before["mirror"] is before["open_clip's cache"] is None
    assert after["file"] == f"data/raw/weights/{name} (here)"
    assert after["mirror"] == f"s3://bucket/mine/weights/{name}"
    assert after["open_clip's cache"] == str(cached)
    assert after["address"] == before["address"]
    assert after["address"].endswith("merged2b_s4b_b131k/resolve/main/open_clip_model.safetensors")


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (("list", "MobilCLIP-S2"), UnknownName, "'MobilCLIP-S2'; did you mean 'MobileCLIP-S2'"),
        (("show", "EVA2-L-14"), UnknownName, "'EVA2-L-14'; did you mean 'EVA02-L-14'"),
        (("show", "ViT-H-14-quickgelu:dfn5"), UnknownName, "did you mean 'dfn5b'"),
        (("show", "ViT-H-16:dfn5b"), UnknownName, "tag of 'ViT-H-16' 'dfn5b'; known: none"),
        (("show", "ViT-H-14:dfn5b"), BadParams, "activation; give ViT-H-14-quickgelu:dfn5b"),
    ],
)
def test_an_unknown_name_is_refused_in_one_line_with_the_closest(
    arguments: tuple[str, ...], kind: type[PdError], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        models(*arguments)

    assert "\n" not in str(caught.value)
