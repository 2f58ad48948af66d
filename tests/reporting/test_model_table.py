"""The table of open_clip's models has all of them, and what they measure."""

from pathlib import Path

import open_clip
import pytest

from pd_core.core.artifacts import read_json
from pd_core.models.model_table import FILE, model_rows
from pd_core.models.preprocessing import preprocess_of_tag
from recipes.model_table import PAGE, build, measure, page

SMALL = (
    "ViT-S-32-alt",
    "ViT-M-16-alt",
    "RN50",
    "MobileCLIP2-S0",
    "PE-Core-T-16-384",
    "coca_ViT-B-32",
    "convnext_tiny",
    "roberta-ViT-B-32",
)


def test_the_file_has_exactly_the_models_of_open_clip() -> None:
    configs = Path(open_clip.__file__).parent / "model_configs"  # other tests register models

    assert set(model_rows()) == {path.stem for path in configs.glob("*.json")}


@pytest.mark.parametrize("name", SMALL)
def test_a_model_built_again_has_the_values_of_the_file(name: str) -> None:
    expected = read_json(FILE)[name]
    del expected["onnx"]

    assert measure(name, *build(name)) == expected


def test_the_papers_models_have_their_known_sizes() -> None:
    large, base = model_rows()["ViT-L-14"], model_rows()["ViT-B-16"]

    assert (large.image_mparams, large.text_mparams) == (304.0, 123.7)  # 427.6 M of CLIP L/14
    assert (base.image_mparams, base.text_mparams) == (86.2, 63.4)
    assert base.gflops == pytest.approx(2 * 17.6, rel=0.01)  # multiply-accumulates of a ViT-B/16


def test_every_tag_of_open_clip_belongs_to_the_model_with_its_activation() -> None:
    published = {
        f"{name.removesuffix('-quickgelu')}:{tag}" for name, tag in open_clip.list_pretrained()
    }
    listed = [
        f"{name.removesuffix('-quickgelu')}:{tag}"
        for name, row in model_rows().items()
        for tag in row.tags
    ]

    assert len(listed) == len(set(listed))
    assert set(listed) == published


def test_the_pixels_are_those_of_the_preprocessing() -> None:
    for name, row in model_rows().items():
        for tag in row.tags:
            assert preprocess_of_tag(name, tag).size == row.image_size


def test_the_page_has_the_table_of_the_file() -> None:
    text = PAGE.read_text()

    assert page(text) == text
