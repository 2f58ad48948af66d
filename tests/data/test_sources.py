import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path, PurePosixPath

import pytest
from archive_files import tree
from file_server import FileServer, server
from origins import ARCHIVES, LAYOUTS, served

from pd_core.core.errors import MissingFile, UnknownName
from pd_core.core.hooks import OnProgress
from pd_core.data.acquire.fetch import Fetcher
from pd_core.data.acquire.sources import (
    Address,
    Origin,
    source_names,
    source_of,
    weight_names,
    weights_file,
)
from pd_core.data.catalog import embedded
from pd_core.data.catalog.catalogue import dataset_names, dataset_spec
from pd_core.data.catalog.readers import image_root
from pd_core.data.loading.splits import is_below

__all__ = ["server"]  # fixtures

PHOTOS = [name for name in dataset_names() if not name.startswith(embedded.PREFIX)]
VARIANTS = ["imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"]
ADDRESSES = [
    address
    for files in (
        *(route for name in source_names() for route in source_of(name).routes),
        [weights_file(name) for name in weight_names()],
    )
    for file in files
    for address in file.addresses
]
OFFICIAL = (Origin.TORCHVISION, Origin.TENSORFLOW, Origin.OPEN_CLIP, Origin.AUTHORS)


def test_every_photo_data_set_and_variant_has_a_source() -> None:
    assert {*PHOTOS, *VARIANTS} == set(source_names())


@pytest.mark.parametrize("name", source_names())
def test_files_end_where_the_catalogue_looks_for_them(name: str) -> None:
    source = source_of(name)
    placed = [
        {item.target for file in route for item in file.placements} for route in source.routes
    ]

    assert is_below(source.folder)
    assert all(path == "" or is_below(path) for paths in placed for path in paths)
    assert all(len({file.name.lower() for file in route}) == len(route) for route in source.routes)
    if name in PHOTOS:
        spec = dataset_spec(name)
        assert source.folder == spec.folder
        for paths in placed:
            assert "" in paths or spec.image_dir in {*paths, ".", source.needs}
            assert spec.split_file is None or spec.split_file in paths


def test_no_two_files_of_a_data_set_share_a_name() -> None:
    for name in source_names():
        files = [file.name.lower() for route in source_of(name).routes for file in route]
        assert len(set(files)) == len(files)


@pytest.mark.parametrize("address", ADDRESSES, ids=lambda address: address.url)
def test_addresses_are_encrypted_and_checksums_well_formed(address: Address) -> None:
    assert re.fullmatch(r"https://[a-z0-9.-]+/\S+", address.url)
    assert re.fullmatch(r"|md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", address.checksum)


@pytest.mark.parametrize("address", ADDRESSES, ids=lambda address: address.url)
def test_without_a_checksum_that_someone_with_authority_published_it_is_unverified(
    address: Address,
) -> None:
    published = bool(address.checksum) and address.origin in OFFICIAL

    assert published or address.unverified


def test_checksums_are_those_of_the_installed_libraries() -> None:
    import inspect

    import open_clip.pretrained
    from torchvision import datasets

    torchvision = "".join(
        Path(inspect.getfile(kind)).read_text()
        for kind in (
            datasets.Caltech101, datasets.DTD, datasets.EuroSAT, datasets.Flowers102,
            datasets.Food101, datasets.OxfordIIITPet, datasets.SUN397,
        )
    )  # fmt: skip
    open_clip = inspect.getsource(open_clip.pretrained)
    for address in ADDRESSES:
        digits = address.checksum.partition(":")[2]
        if address.origin is Origin.TORCHVISION:
            assert digits in torchvision
            assert PurePosixPath(address.url).name in torchvision
        if address.origin is Origin.OPEN_CLIP:
            assert address.url in open_clip
            assert digits in address.url


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UnknownName, match="'dtd2'; did you mean 'dtd'"):
        source_of("dtd2")
    with pytest.raises(UnknownName, match="'ViT-B16'; did you mean 'ViT-B-16.pt'"):
        weights_file("ViT-B16")


@contextmanager
def unwatched(_: str) -> Iterator[OnProgress]:
    with nullcontext():
        yield lambda _done, _total: None


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_of_the_origin_end_in_the_communitys_layout(
    name: str, server: FileServer, tmp_path: Path
) -> None:
    notes: list[str] = []
    source = served(source_of(name), ARCHIVES[name], server)

    Fetcher(tmp_path, unwatched, notes.append).fetch(source)

    files = {path for path in tree(tmp_path) if not path.startswith("archives/")}
    assert files == LAYOUTS[name]
    assert {path.name for path in tmp_path.iterdir()} == {"archives", source.folder}
    if name in PHOTOS:
        assert image_root(dataset_spec(name), tmp_path).is_dir()
    assert len(notes) == 2 * len(ARCHIVES[name])


def test_imagenet_is_got_by_hand_and_its_class_names_once_it_is_linked(
    server: FileServer, tmp_path: Path
) -> None:
    source = served(source_of("imagenet"), {"classnames.txt": b"n01440764 tench\n"}, server)
    with pytest.raises(MissingFile, match="register at https://image-net.org.* ln -s ") as caught:
        Fetcher(tmp_path, unwatched, print).fetch(source)
    assert str(tmp_path / "imagenet" / "images") in str(caught.value)
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "imagenet" / "images").symlink_to(copy)

    Fetcher(tmp_path, unwatched, lambda _: None).fetch(source)

    assert (tmp_path / "imagenet" / "classnames.txt").is_file()
    assert not list(copy.iterdir())
