"""Parity checks of lists of images and of the random numbers used.

Each takes the content of a `splits.json` and returns the number of lists compared.
"""

import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from miniatures import prepare_config

from pd_core.data.catalog import prepare
from pd_core.data.loading import splits
from pd_core.data.loading.splits import Item, Items, Protocol, Splits

Recorded = dict[str, Any]
Rows = list[list[Any]]

VAL_SHOTS = 4


def few_shot_lists(recorded: Recorded) -> int:
    """Compare few-shot training and validation images, and the generator's next number."""
    count = 0
    for seed, shots, expected in _few_shot_cases(recorded):
        rng = random.Random(seed)
        train, val = _few_shot(_content(recorded["input"]), shots, rng)
        assert _paths(train) == expected["train"], (seed, shots)
        assert _paths(val) == expected["val_fewshot"], (seed, shots)
        assert rng.random() == expected["next_random_random_after"], (seed, shots)
        count += 2
    return count


def base_and_novel_lists(recorded: Recorded) -> int:
    """Compare base and novel images and classes of few-shot and test lists."""
    count = 0
    content = _content(recorded["input"])
    names = content.class_names
    for seed, shots, expected in _few_shot_cases(recorded):
        train, _ = _few_shot(content, shots, random.Random(seed))
        cut = splits.base_count(len(names))
        for name, drawn in (("train_x", train), ("test", content.test)):
            base, novel = splits.base_and_novel(drawn, len(names))
            assert _rows(base) == expected["base"][name], (seed, shots, name)
            assert _rows(novel, cut) == expected["new"][name], (seed, shots, name)
            count += 2
        assert list(names[:cut]) == expected["base"]["classnames"]
        assert list(names[cut:]) == expected["new"]["classnames"]
        taught, _ = splits.few_shot_split(
            content, shots=_possible(content, shots), val_shots=VAL_SHOTS,
            protocol=Protocol.BASE_TO_NOVEL, rng=random.Random(seed),
        )  # fmt: skip
        assert _possible(content, shots) < shots or _rows(taught) == expected["base"]["train_x"]
    return count


def distillation_lists(recorded: Recorded) -> int:
    """Compare the unlabelled images, all of the train list or few shots, and the test images."""
    count = 0
    content = _content(recorded["input"])
    cut = splits.base_count(len(content.class_names))
    for key, expected in recorded.items():
        case = re.fullmatch(r"promptkd_(base2novel|cross)_shots(\d+)(?:_seed(\d+))?", key)
        if case is None:
            continue
        shots, seed = int(case[2]), int(case[3] or 1)
        unlabelled, tested = _prepared(content, case[1])
        if shots:
            unlabelled = _paths(_few_shot(content, shots, random.Random(seed))[0])
        train = [path for path, _, _ in expected.get("train_x", [])]
        assert not train or sorted(train) == sorted(unlabelled), key
        base = [[path, label] for path, label in tested if label < cut]
        novel = [[path, label - cut] for path, label in tested if label >= cut]
        halves = {"val": base, "test": novel}
        for name, ours in (halves if case[1] == "base2novel" else {"test": tested}).items():
            rows = [[path, label] for path, label, _ in expected.get(name, [])]
            assert not rows or rows == ours, (key, name)
            count += bool(rows)
        count += bool(train)
    return count


def validation_cuts(recorded: Recorded) -> int:
    """Compare the validation split of a train list, and few-shot draws after it."""
    fresh = recorded.get("fresh_no_split_file", {})
    items = _items(fresh.get("trainval_input", []))
    cases = [
        *_by_seed(fresh, r"seed(\d+)"),
        *_by_seed(recorded, r"split_trainval_seed(\d+)"),
    ]
    count = 0
    for seed, expected in cases:
        rng = random.Random(seed)
        train, val = splits.train_val(items, rng)
        for drawn, rows in ((train, expected["train"]), (val, expected["val"])):
            paths_only = isinstance(rows[0], str)
            assert (_paths(drawn) if paths_only else _rows(drawn)) == rows, seed
            count += 1
        state = rng.getstate()
        for shots, few in _by_seed(expected, r"fewshot(\d+)_train"):
            rng.setstate(state)
            few_train, few_val = _few_shot(Splits(train, val, ()), shots, rng)
            assert _paths(few_train) == few, (seed, shots)
            assert _paths(few_val) == expected[f"fewshot{shots}_val"], (seed, shots)
            assert rng.random() == expected["next_random_random_after"], (seed, shots)
            count += 2
    return count


def three_way_cuts(recorded: Recorded) -> int:
    """Compare the split of folders into train, validation and test."""
    count = 0
    for key, expected in recorded.items():
        case = re.fullmatch(r"dtd_read_and_split_seed(\d+)_.*", key)
        if case is None:
            continue
        rng = random.Random(int(case[1]))
        drawn = splits.train_val_test(_listed(expected), rng)
        for name in ("train", "val", "test"):
            assert _rows(getattr(drawn, name)) == expected[name], (key, name)
            count += 1
        assert rng.random() == expected["next_random_random_after"], key
    return count


Check = Callable[[Recorded], int]

ALL: dict[str, Check] = {
    check.__name__: check
    for check in (
        few_shot_lists,
        base_and_novel_lists,
        distillation_lists,
        validation_cuts,
        three_way_cuts,
    )
}

KEYS = {  # start of the keys that each check reads
    "few_shot_lists": "fewshot",
    "base_and_novel_lists": "fewshot",
    "distillation_lists": "promptkd_",
    "validation_cuts": "fresh_no_split_file|split_trainval_seed",
    "three_way_cuts": "dtd_read_and_split_seed",
}


def _prepared(content: Splits, kind: str) -> tuple[list[str], list[list[Any]]]:
    """Let our stage prepare the lists; return the unlabelled and the test images."""
    protocol = Protocol.BASE_TO_NOVEL if kind == "base2novel" else Protocol.ALL_CLASSES
    with (
        TemporaryDirectory() as folder,
        patch.object(prepare, "read_splits", lambda *_, **__: content),
        patch.object(prepare, "image_root", lambda _, root: root / "pictures"),
    ):
        out = Path(folder) / "lists"
        prepare.run(
            "oxford_pets", out,
            prepare_config(protocol=protocol, shots=1, val_shots=VAL_SHOTS),
            data_root=Path(), seed=1,
        )  # fmt: skip
        unlabelled = json.loads((out / "unlabelled.json").read_text())
        tested = json.loads((out / "split.json").read_text())["test"]
    return unlabelled, tested


def _few_shot(content: Splits, shots: int, rng: random.Random) -> tuple[Items, Items]:
    """Draw train and validation images of all classes."""
    if _possible(content, shots) < shots:  # our stage refuses this; the original keeps all images
        train = splits.few_shot(content.train, shots, rng)
        return train, splits.few_shot(content.val, min(shots, VAL_SHOTS), rng)
    return splits.few_shot_split(
        content, shots=shots, val_shots=VAL_SHOTS, protocol=Protocol.ALL_CLASSES, rng=rng
    )


def _possible(content: Splits, shots: int) -> int:
    sizes: dict[int, int] = {}
    for item in content.train:
        sizes[item.label] = sizes.get(item.label, 0) + 1
    return min(shots, max(sizes.values()))


def _few_shot_cases(recorded: Recorded) -> Iterator[tuple[int, int, Any]]:
    for key, expected in recorded.get("fewshot", {}).items():
        case = re.fullmatch(r"seed(\d+)_shots(\d+)", key)
        assert case is not None, f"unknown few-shot case '{key}'"
        yield int(case[1]), int(case[2]), expected


def _by_seed(cases: Recorded, pattern: str) -> Iterator[tuple[int, Any]]:
    for key, expected in cases.items():
        if match := re.fullmatch(pattern, key):
            yield int(match[1]), expected


def _content(lists: dict[str, Rows]) -> Splits:
    return Splits(*(_items(lists[name]) for name in ("train", "val", "test")))


def _listed(expected: dict[str, Any]) -> Items:
    """Return the images in the order in which the original saw them: as noted, or sorted."""
    drawn: Rows = [row for name in ("train", "val", "test") for row in expected[name]]
    owner = {path: (label, name) for path, label, name in drawn}
    folders = expected.get("listdir_order_as_seen", {})
    seen = [path for folder in sorted(folders) for path in folders[folder] if path in owner]
    if not folders:
        seen = sorted(owner, key=lambda path: (owner[path][0], path))
    return tuple(Item(path, *owner[path]) for path in seen)


def _items(rows: Rows) -> Items:
    return tuple(Item(path, label, name) for path, label, name in rows)


def _paths(drawn: Items) -> list[str]:
    return [item.path for item in drawn]


def _rows(drawn: Items, first: int = 0) -> Rows:
    return [[item.path, item.label - first, item.name] for item in drawn]
