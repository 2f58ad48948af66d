"""Teachers, class vectors and students that are corrupt, forged, or other files."""

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from corruption import OWN, STUDENT, TEACHER, VECTORS, Case, Damage, damages, pristine, put, refused
from torch import Tensor

from pd_core.core.artifacts import read_tensors, write_tensors
from pd_core.core.errors import BadArtifact

READERS = {TEACHER: ("class-vectors", OWN), VECTORS: ("student", OWN), STUDENT: ("evaluate", OWN)}


def at(path: Path, part: str, place: float, bit: int) -> Damage:
    """Flip a bit in a part of a safetensors file: its length, header, or data."""

    def damage(project: Path) -> None:
        content = bytearray((project / path).read_bytes())
        size = int.from_bytes(content[:8], "little")
        bounds = {"length": (0, 8), "header": (8, 8 + size), "data": (8 + size, len(content))}
        start, end = bounds[part]
        content[start + int(place * (end - start))] ^= 1 << bit
        (project / path).write_bytes(content)

    return damage


def header_of(path: Path, change: Callable[[dict[str, Any]], object]) -> Damage:
    """Change a header, but not the data."""

    def damage(project: Path) -> None:
        content = (project / path).read_bytes()
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        change(header)
        text = json.dumps(header).encode()
        (project / path).write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])

    return damage


def forged(
    path: Path,
    tensors: Mapping[str, Callable[[Tensor], Tensor] | None] | None = None,
    **metadata: str | None,
) -> Damage:
    """Change or remove tensors and metadata, and write a valid checksum."""

    def damage(project: Path) -> None:
        old, texts = read_tensors(project / path)
        for name, change in (tensors or {}).items():
            value = old.pop(name)
            if change is not None:
                old[name] = change(value)
        texts = {key: value for key, value in {**texts, **metadata}.items() if value is not None}
        write_tensors(project / path, old, texts)

    return damage


def nan(value: Tensor) -> Tensor:
    return value.clone().fill_(float("nan"))


def halved(value: Tensor) -> Tensor:
    return value[..., ::2].contiguous()


FORGED: dict[Path, dict[str, Damage]] = {
    TEACHER: {
        "without method": forged(TEACHER, method=None),
        "of an unknown method": forged(TEACHER, method="magic"),
        "without template": forged(TEACHER, template=None),
        "of another model": forged(TEACHER, model="ViT-B-16"),
        "with a depth in words": forged(TEACHER, text_depth="two"),
        "with a wrong depth": forged(TEACHER, text_depth="3"),
        "without prompts": forged(TEACHER, {"text.tokens": None}),
        "with half the width": forged(TEACHER, {"text.tokens": halved}),
        "with flat prompts": forged(TEACHER, {"text.tokens": lambda value: value[:, :, 0]}),
        "with whole numbers": forged(TEACHER, {"text.tokens": lambda value: value.long()}),
        "with nan": forged(TEACHER, {"text.tokens": nan}),
    },
    VECTORS: {
        "without names": forged(VECTORS, names=None),
        "with names that are no list": forged(VECTORS, names='"ash"'),
        "with names that are no JSON": forged(VECTORS, names="[ash"),
        "with numbers for names": forged(VECTORS, names="[1, 2, 3, 4]"),
        "with names too few": forged(VECTORS, names='["ash tree", "beech"]'),
        "of other classes": forged(VECTORS, names='["a", "b", "c", "d"]'),
        "with half the width": forged(VECTORS, {"vectors": halved}),
        "with flat vectors": forged(VECTORS, {"vectors": lambda value: value[:, 0]}),
        "with whole numbers": forged(VECTORS, {"vectors": lambda value: value.long()}),
        "with nan": forged(VECTORS, {"vectors": nan}),
        "without scale": forged(VECTORS, {"logit_scale": None}),
        "with two scales": forged(VECTORS, {"logit_scale": lambda value: value.repeat(2)}),
        "with an infinite scale": forged(VECTORS, {"logit_scale": lambda value: value / 0}),
    },
    STUDENT: {
        "without width": forged(STUDENT, feature_width=None),
        "with a width in words": forged(STUDENT, feature_width="wide"),
        "with a width that fills the memory": forged(STUDENT, feature_width="1000000000000"),
        "with a negative width": forged(STUDENT, feature_width="-16"),
        "with another number of layers": forged(STUDENT, projector_layers="3"),
        "with layers in words": forged(STUDENT, projector_layers="two"),
        "of an unknown selection": forged(STUDENT, selection="luck"),
        "of unknown text features": forged(STUDENT, text_features="nobody"),
        "of another model": forged(STUDENT, model="ViT-B-16"),
        "without a layer": forged(STUDENT, {"projector.0.weight": None}),
        "with half a layer": forged(STUDENT, {"projector.0.weight": halved}),
        "with nan": forged(STUDENT, {"projector.0.weight": nan}),
        "with endless prompts": forged(STUDENT, image_depth="1000000"),
    },
}  # fmt: skip


def cases() -> Iterator[Case]:
    for path, verb in READERS.items():
        named = {
            **damages(path, cuts=(0, 0.001, 0.1, 0.4, 0.7, 0.999)),
            **{
                f"bit {bit} of the {part} at {place}": at(path, part, place, bit)
                for part, places in {
                    "length": ((0, 0), (0.13, 5), (0.5, 3), (0.9, 7)),
                    "header": ((0, 0), (0.02, 1), (0.3, 2), (0.6, 4), (0.8, 0), (0.999, 3)),
                    "data": ((0, 0), (0.25, 7), (0.5, 3), (0.75, 1), (0.999, 6)),
                }.items()
                for place, bit in places
            },
            "with a header of exabytes": put(path, struct.pack("<Q", 2**62) + bytes(100)),
            "without metadata": header_of(path, lambda header: header.pop("__metadata__")),
            "null for metadata": header_of(path, lambda header: header.update(__metadata__=None)),
            "with another checksum": header_of(
                path, lambda header: header["__metadata__"].update(sha256="0" * 64)
            ),
            "with a tensor more": header_of(
                path, lambda header: header.update(a={**next(iter(header.values()))})
            ),
            **FORGED[path],
        }
        for name, damage in named.items():
            yield Case(f"{path.stem}: {name}", damage, *OTHER_VERBS.get(name, (verb, path.name)))


# Valid files that contradict others.
OTHER_VERBS: dict[str, tuple[tuple[str, ...], str]] = {
    "of other classes": (("evaluate", OWN), f"class vectors in '{VECTORS.parent}'"),
    "with half the width": (("evaluate", OWN), OWN),
    "on a broken disk": (("evaluate", OWN), ".safetensors"),
}

test_corrupt_models_are_refused = refused(cases())


@pytest.mark.timeout(30)
def test_every_flipped_bit_of_a_file_is_detected(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = (pristine(tmp_path_factory.getbasetemp()) / VECTORS).read_bytes()
    path = tmp_path / "class_vectors.safetensors"
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 1 << (place % 8)
        path.write_bytes(content)
        with pytest.raises(BadArtifact):
            read_tensors(path)
