"""Models whose text tower or tokenizer is one of transformers, an extra."""

import json
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import tiny
import torch
import torch.nn.functional as F
import trainings
from safetensors.torch import save_file

from pd_core.core.errors import BadParams, MissingFile
from pd_core.core.options import TeacherMethod
from pd_core.models import class_vectors, clip
from pd_core.models.class_texts import Frame
from pd_core.models.clip import ClipTowers
from pd_core.models.teacher import Teacher

WORDS = ["<s>", "<pad>", "</s>", "<unk>", *["a", "photo", "of", "katze", "hund", "vogel", "."]]
NAMES = ("katze", "hund", "vogel")
KINDS = ["xlm", "nllb"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a tokenizer and configurations of text towers, as the hub has them."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("hub")
    words = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    size = {"vocab_size": len(WORDS), "max_position_embeddings": 40, "pad_token_id": 1}
    configs = {
        "xlm": transformers.XLMRobertaConfig(
            **size, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
        ),
        "nllb": transformers.M2M100Config(
            **size, d_model=32, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64,
        ),
    }  # fmt: skip
    for name, config in configs.items():
        config.save_pretrained(folder / name)
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
        ).save_pretrained(folder / name)
    return folder


def register(name: str, text: dict[str, Any], folder: Path) -> None:
    config = {**tiny.CONFIG, "text_cfg": text}
    (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / f"{name}.json")


def load(kind: str, hub: Path, folder: Path) -> ClipTowers:
    """Load a model from a file of random weights."""
    pooler = {"xlm": "mean_pooler", "nllb": "cls_pooler"}[kind]
    source = str(hub / kind)
    text = {"hf_model_name": source, "hf_tokenizer_name": source, "hf_pooler_type": pooler,
            "hf_proj_type": "linear", "context_length": 12}  # fmt: skip
    register(f"tiny-{kind}", text, folder)
    generator = torch.Generator().manual_seed(0)
    state = clip.build(f"tiny-{kind}").state_dict()
    for value in state.values():  # new ones are almost the same for all texts
        if value.is_floating_point() and value.dim() > 0:
            value += torch.randn(value.shape, generator=generator) / 5
    save_file(state, folder / "weights.safetensors")
    return clip.load_clip(f"tiny-{kind}", folder / "weights.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_a_multilingual_text_tower_is_a_zero_shot_teacher_and_cannot_be_tuned(
    kind: str, hub: Path, tmp_path: Path
) -> None:
    towers = load(kind, hub, tmp_path)
    teacher = Teacher(towers).eval()

    vectors = class_vectors.build(teacher, NAMES)
    _, history = trainings.distill(
        tiny.towers(), teacher, vectors, tiny.Batches(8, size=8), epochs=5, lr=0.001, kd_weight=10
    )

    tokens = towers.tokenize(teacher.texts(NAMES))
    assert tokens[0].tolist() == [0, 4, 5, 6, 4, 7, 10, 2, 1, 1, 1, 1]
    with torch.no_grad():
        expected = F.normalize(towers.text(tokens), dim=-1)
    torch.testing.assert_close(vectors.vectors, expected, atol=1e-5, rtol=0)
    assert history[-1]["loss"] < history[0]["loss"]
    for method in set(TeacherMethod) - {TeacherMethod.CLIP}:
        with pytest.raises(BadParams, match=r"its text tower .* set teacher.method to clip$"):
            Teacher.untrained(towers, method=method)


def test_a_tokenizer_of_transformers_is_understood(hub: Path, tmp_path: Path) -> None:
    source = str(hub / "xlm")
    text = {**tiny.CONFIG["text_cfg"], "hf_tokenizer_name": source, "vocab_size": len(WORDS)}
    register("tiny-eos", {**text, "pool_type": "eos", "eos_id": 2}, tmp_path)
    save_file(clip.build("tiny-eos").state_dict(), tmp_path / "weights.safetensors")

    towers = clip.load_clip("tiny-eos", tmp_path / "weights.safetensors")

    assert Frame.of(towers.tokenize) == Frame(start=1, end=2, padding=1)
    teacher = Teacher.untrained(towers, text_depth=2, image_depth=2)
    assert teacher.text_features(teacher.tokens(NAMES)).shape == (3, 16)


def test_a_tokenizer_that_is_not_here_is_missed_before_the_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)

    with pytest.raises(MissingFile, match=r"tokenizer 'timm/ViT-B-16-SigLIP' .* install promptkd"):
        clip.load_clip("ViT-B-16-SigLIP", "webli")
