"""The embedded CLIPs: their weights, their tokenizer, and the recipe behind them."""

import json
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from pd_core.cli import main
from pd_core.core.errors import BadArtifact, MissingFile
from pd_core.data.catalog import embedded as benchmark
from pd_core.data.catalog import glyphs
from pd_core.models import embedded as clips
from pd_core.models.clip import load_clip
from pd_core.models.prompts import encode_image
from recipes import embedded_clips as recipes
from recipes.embedded_clips import Recipe

MEGABYTE = 10**6
ROOT = Path(__file__).parents[2]


def test_the_shipped_weights_take_at_most_12_megabytes() -> None:
    sizes = [clips.embedded_weights(name).stat().st_size for name in clips.EMBEDDED]
    assert sum(sizes) <= 12 * MEGABYTE


@pytest.mark.parametrize("name", clips.EMBEDDED)
def test_the_shipped_weights_load(name: str) -> None:
    towers = load_clip(name, None)
    assert towers.image_size == 32
    assert encode_image(towers.visual, torch.zeros(2, 3, 32, 32)).shape == (2, towers.joint_width)


def test_the_restricted_tokenizer_splits_the_benchmarks_words_as_clip_does() -> None:
    clip, ours = open_clip.SimpleTokenizer(), clips.embedded_tokenizer()
    names = [name for domain in benchmark.DOMAINS for name in benchmark.class_names(domain)]
    for text in [f"a photo of a {name}." for name in names]:
        assert [ours.decoder[i] for i in ours.encode(text)] == [
            clip.decoder[i] for i in clip.encode(text)
        ]


def test_the_longest_class_name_fits_into_the_context() -> None:
    names = [name for domain in benchmark.DOMAINS for name in benchmark.class_names(domain)]
    longest = max(len(clips.embedded_tokenizer().encode(f"a photo of a {name}.")) for name in names)
    assert longest + 2 <= clips.embedded_tokenizer().context_length


def test_end_of_text_has_the_largest_id() -> None:
    tokens = clips.embedded_tokenizer()(["greek small letter alpha"])
    assert int(tokens.max()) == clips.embedded_tokenizer().eot_token_id


def test_the_merges_file_can_be_made_again(tmp_path: Path) -> None:
    recipes.write_merges(tmp_path / "merges.txt.gz")
    assert (tmp_path / "merges.txt.gz").read_bytes() == clips.MERGES_FILE.read_bytes()


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="nowhere"):
        load_clip("embedded-student", tmp_path / "nowhere.safetensors")


def test_the_teachers_weights_do_not_pass_for_the_students() -> None:
    with pytest.raises(BadArtifact, match="embedded-student"):
        load_clip("embedded-student", clips.embedded_weights("embedded-teacher"))


def test_lookalikes_share_a_number_and_others_do_not() -> None:
    masters = np.stack([glyphs.render(char, "DejaVuSans") for char in "A\u0391B"])
    groups = recipes._lookalikes(masters, np.arange(3), 3)
    assert groups[0] == groups[1] != groups[2]


def test_the_loss_does_not_punish_lookalikes() -> None:
    image = F.normalize(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    text = image.clone()
    text[1] = text[0]  # caption 1 says the same as caption 0
    owner, scale = torch.arange(3), torch.tensor(100.0)
    contradictory = recipes.contrastive_loss(
        image[[0, 0, 2]], text, owner, torch.tensor([0, 1, 2]), scale
    )
    masked = recipes.contrastive_loss(image[[0, 0, 2]], text, owner, torch.tensor([0, 0, 2]), scale)
    assert masked < contradictory


def test_augmentation_is_reproducible_and_grows_harder() -> None:
    masters = torch.from_numpy(np.stack([glyphs.render("A", "DejaVuSans")] * 4))

    def draw(difficulty: float) -> torch.Tensor:
        augment = recipes.Augmenter(torch.Generator().manual_seed(1))
        return augment(masters, difficulty=difficulty)

    assert torch.equal(draw(1.0), draw(1.0))
    plain, hard = draw(0.0), draw(1.0)
    assert torch.equal(plain[0], plain[1])
    assert not torch.equal(hard[0], hard[1])


@pytest.mark.slow
def test_pretraining_learns_and_repeats_to_the_byte(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        recipe = Recipe("embedded-student", images=2048, seed=1, threads=1, batch_size=64)
        recipes.run(recipe, tmp_path / folder)
    name = "embedded-student.safetensors"
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.slow
def test_a_second_round_goes_on_from_the_weights_of_the_first(tmp_path: Path) -> None:
    name = "embedded-student"
    shipped = clips.embedded_weights(name)
    recipe = Recipe(name, images=16, seed=2, threads=1, batch_size=16, lr=1e-9, start=shipped)
    recipes.run(recipe, tmp_path)
    before, after = load_file(shipped), load_file(tmp_path / f"{name}.safetensors")
    assert all(torch.allclose(before[key], after[key], atol=1e-6) for key in before)


def test_weights_to_start_from_that_are_not_there_are_refused(tmp_path: Path) -> None:
    recipe = Recipe("embedded-student", images=16, seed=2, threads=1, start=tmp_path / "none")
    with pytest.raises(MissingFile, match="start from"):
        recipes.run(recipe, tmp_path)


def test_the_shipped_teacher_leads_the_shipped_student_by_five_points() -> None:
    table = json.loads((clips.WEIGHTS_FOLDER / "zero_shot.json").read_text())
    assert len(table) == 12
    assert table["average"]["embedded-teacher"] - table["average"]["embedded-student"] >= 5


def test_the_verb_runs_the_recipe_in_a_clone_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["embedded", "pretrain", "nothing", "--images", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["promptkd", *arguments])
    for folder, message in ((ROOT, "unknown embedded model"), (tmp_path, "in a clone")):
        monkeypatch.chdir(folder)
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        assert message in capfd.readouterr().err
