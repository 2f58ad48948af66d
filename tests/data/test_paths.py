"""Lists of paths are sequences of strings, without an object for each."""

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_core.data.loading.decode import ImageStore
from pd_core.data.loading.images import ImageBatches, train_transform
from pd_core.data.loading.paths import PathList
from pd_core.models.portable.preprocess import Preprocess

PATHS = st.lists(st.text(st.characters(exclude_categories=()), max_size=5), max_size=6)


@given(paths=PATHS, bounds=st.tuples(*[st.none() | st.integers(-8, 8)] * 2))
def test_a_list_gives_its_paths_back(paths: list[str], bounds: tuple[int | None, ...]) -> None:
    listed = PathList(paths)

    assert list(listed) == paths
    assert [listed[index] for index in range(-len(paths), len(paths))] == [*paths, *paths]
    assert listed[slice(*bounds)] == tuple(paths[slice(*bounds)])
    with pytest.raises(IndexError):
        listed[len(paths)]


@given(first=PATHS, second=PATHS)
def test_lists_are_equal_if_their_paths_are(first: list[str], second: list[str]) -> None:
    assert (PathList(first) == PathList(second)) is (first == second)
    assert PathList(["ab", "c"]).digest != PathList(["a", "bc"]).digest
    assert len({PathList(first), PathList(first)}) == 1


def test_a_list_of_paths_is_not_copied() -> None:
    listed = PathList(["a", "b"])

    assert PathList.of(listed) is listed
    assert PathList.of(("a", "b")) == listed


def test_a_list_takes_eight_bytes_a_path_beside_its_text() -> None:
    paths = [f"images/{number:06}.jpg" for number in range(100_000)]
    tracemalloc.start()

    listed = PathList(paths)

    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken < 100_000 * (len(listed[0]) + 8) + 10_000


@pytest.mark.parametrize("workers", [0, 1])
def test_the_first_batch_of_an_epoch_makes_no_object_for_the_others(
    tmp_path: Path, picture: bytes, workers: int
) -> None:
    (tmp_path / "a.png").write_bytes(picture)
    batches = ImageBatches(
        ImageStore(tmp_path), ["a.png"] * 100_000,
        train_transform(Preprocess(8), scale=(0.5, 1.0), flip=True), batch_size=4, workers=workers,
    )  # fmt: skip
    tracemalloc.start()

    batch = next(batches.epoch(1))

    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(batch.indices) == 4
    assert most < 500_000
