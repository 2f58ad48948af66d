"""Table of the files to download: addresses, checksums, and their place below the data root."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pd_core.core.errors import unknown


class Origin(StrEnum):
    """Publication that an address and its checksum are taken from."""

    TORCHVISION = "torchvision"
    TENSORFLOW = "TensorFlow Datasets"
    OPEN_CLIP = "open_clip"
    COOP = "CoOp's DATASETS.md"
    AUTHORS = "the repository of the paper's authors"
    REPORTED = "users' scripts"


@dataclass(frozen=True)
class Address:
    """Address of a file."""

    url: str
    origin: Origin  # publication that it is taken from
    checksum: str = ""  # `md5:` or `sha256:` and hexadecimal digits; empty if none is known
    unverified: bool = True  # no authority published a checksum


@dataclass(frozen=True)
class Placement:
    """Wanted part of an archive, and its target.

    Attributes:
        member: Path in the archive, at the top or up to two folders below it, so that a folder
            around everything does not matter; for a plain file its own name.
        target: Path below the folder of the data set; empty for the folder itself.
    """

    member: str
    target: str


@dataclass(frozen=True)
class RemoteFile:
    """File to download."""

    name: str  # local name
    addresses: tuple[Address, ...]  # best first; bytes may differ, unpacked content may not
    placements: tuple[Placement, ...] = ()
    nested: tuple[str, ...] = ()  # names of archives inside, which are unpacked where they are

    @property
    def is_archive(self) -> bool:
        """True if it has to be unpacked."""
        return self.name.endswith((".zip", ".tar", ".tar.gz", ".tgz"))

    @property
    def checksums(self) -> tuple[str, ...]:
        """Checksums of the addresses; empty if one of them has none."""
        checksums = tuple(address.checksum for address in self.addresses)
        return checksums if all(checksums) else ()


@dataclass(frozen=True)
class Source:
    """Download sources of a data set."""

    name: str  # in the catalogue
    folder: str  # below the data root
    routes: tuple[tuple[RemoteFile, ...], ...]  # sets of files, best first; each is sufficient
    by_hand: str = ""  # manual step that has to come first, with `{folder}` for the folder
    needs: str = ""  # name in the folder that exists once the manual step is done


WEIGHTS = "weights"
"""Folder of CLIP's weights below the data root."""


def weight_names() -> tuple[str, ...]:
    """Names of the weight files."""
    return tuple(_CLIP_ROWS)


def weights_file(name: str) -> RemoteFile:
    """Return the row of a weight file.

    Raises:
        UnknownName: There is no such row.
    """
    if name in _CLIP_ROWS:
        return _CLIP_ROWS[name]
    if not has_weights(name):
        raise unknown("weights", name, _CLIP_ROWS)
    model, _, tag = Path(name).stem.partition(".")
    return weights_of_tag(model, tag)


def has_weights(name: str) -> bool:
    """Return True for a row of the table, and for `<model>.<tag>` of open_clip and a suffix."""
    model, dot, tag = Path(name).stem.partition(".")
    if name in _CLIP_ROWS or not dot:
        return name in _CLIP_ROWS
    from pd_core.models.pretrained import tags_of

    return tag in tags_of(model)


def weights_of_tag(model: str, tag: str) -> RemoteFile:
    """Return the weights of a tag of open_clip: a row of the table, or a file of Hugging Face's."""
    from pd_core.models.pretrained import published

    source = published(model, tag)
    if (name := source.url.rpartition("/")[2]) in _CLIP_ROWS:
        return _CLIP_ROWS[name]
    address = f"{_HUGGING_FACE}/{source.repository}/resolve/main/{source.file}"
    url = address if source.repository else source.url
    return RemoteFile(f"{model}.{tag}{Path(url).suffix}", (Address(url, Origin.OPEN_CLIP),))


def source_names() -> tuple[str, ...]:
    """Names of the data sets that can be downloaded."""
    return tuple(_BY_NAME)


def source_of(name: str) -> Source:
    """Return the sources of a data set.

    Raises:
        UnknownName: There is no such row.
    """
    if name not in _BY_NAME:
        raise unknown("data set to fetch", name, _BY_NAME)
    return _BY_NAME[name]


def _openai(name: str, sha256: str) -> RemoteFile:
    """Weights of OpenAI; the address contains the checksum, and open_clip has both."""
    url = f"https://openaipublic.azureedge.net/clip/models/{sha256}/{name}"
    return RemoteFile(name, (Address(url, Origin.OPEN_CLIP, f"sha256:{sha256}", unverified=False),))


def _torchvision(url: str, md5: str) -> Address:
    """An address and checksum from the sources of torchvision."""
    return Address(url, Origin.TORCHVISION, f"md5:{md5}", unverified=False)


def _tensorflow(url: str, sha256: str) -> Address:
    """An address and checksum from TensorFlow Datasets."""
    return Address(url, Origin.TENSORFLOW, f"sha256:{sha256}", unverified=False)


def _reported(url: str, checksum: str = "") -> Address:
    """An address from users' scripts."""
    return Address(url, Origin.REPORTED, checksum)


def _drive(file_id: str) -> Address:
    """A small file on Google Drive, from CoOp's instructions."""
    return Address(f"https://drive.google.com/uc?export=download&id={file_id}", Origin.COOP)


def _drive_large(file_id: str, checksum: str = "") -> Address:
    """A large file on Google Drive, without the confirmation page of its virus scan."""
    host = "https://drive.usercontent.google.com"
    return _reported(f"{host}/download?id={file_id}&export=download&confirm=t", checksum)


def _plain(name: str, *addresses: Address) -> RemoteFile:
    """A file that goes as it is into the data set's folder."""
    return RemoteFile(name, addresses, (Placement(name, name),))


def _split(title: str, file_id: str) -> RemoteFile:
    """The community's split file."""
    return _plain(f"split_zhou_{title}.json", _drive(file_id))


def _packed(name: str, wanted: str, *addresses: Address, nested: str = "") -> RemoteFile:
    """An archive; `wanted` are the members to keep, separated by blanks."""
    placements = tuple(Placement(path, path) for path in wanted.split())
    return RemoteFile(name, addresses, placements, tuple(nested.split()))


def _moved(name: str, member: str, target: str, *addresses: Address) -> RemoteFile:
    """An archive of which one folder is kept under another name."""
    return RemoteFile(name, addresses, (Placement(member, target),))


def _copy(name: str, wanted: str, *, sha256: str = "", reported: str = "") -> RemoteFile:
    """The authors' copy of a data set, with their checksum or one that users report."""
    digits = sha256 or reported
    checksum = f"sha256:{digits}" if digits else ""
    address = Address(f"{_COPIES}/{name}", Origin.AUTHORS, checksum, unverified=not sha256)
    return _packed(f"copy-{name}", wanted, address)  # the original may have the same name


def _source(
    name: str, folder: str, *files: RemoteFile, copy: RemoteFile | None = None, **by_hand: str
) -> Source:
    """A data set from its origin or else from the authors' copy, if there is one."""
    return Source(name, folder, (files, (copy,)) if copy else (files,), **by_hand)


_HUGGING_FACE = "https://huggingface.co"
_COPIES = (
    f"{_HUGGING_FACE}/zhengli97/prompt_learning_dataset/resolve/"
    "ceb3112337fb6e1bf71534e355ca5569b63f19a6"
)
_CARS = "https://ai.stanford.edu/~jkrause"
_HENDRYCKS = "https://people.eecs.berkeley.edu/~hendrycks"
_SUN = "https://vision.princeton.edu/projects/2010/SUN"
_VGG = "https://www.robots.ox.ac.uk/~vgg/data"
_SKETCH = "sha256:4d3ce6b82a7c48aabf14aeac105eb533e75707f152cc858f55bfc022031a72ed"
_CLASS_NAMES = _plain("classnames.txt", _drive("1-61f_ol79pViBFDG_IDlUQSwoLcn2XXF"))

_CLIP_ROWS = {
    file.name: file
    for file in (
        _openai("ViT-B-16.pt", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"),
        _openai("ViT-L-14.pt", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"),
        _openai("ViT-B-32.pt", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"),
    )
}

_ROWS = (
    _source(
        "imagenet", "imagenet", _CLASS_NAMES,
        by_hand="ImageNet cannot be downloaded freely: register at https://image-net.org, get "
        "ILSVRC2012, sort it into images/train/<wnid> and images/val/<wnid>, and link it: "
        "mkdir -p {folder} && ln -s /path/of/your/images {folder}/images",
        needs="images",
    ),
    _source(
        "caltech101", "caltech-101",
        _packed("caltech-101.zip", "101_ObjectCategories", _torchvision(
            "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
            "3138e1922a9193bfa496528edbbc45d0",
        ), nested="101_ObjectCategories.tar.gz"),
        _split("Caltech101", "1hyarUivQE36mY6jSomru6Fjd-JzwcCzN"),
        copy=_copy("caltech-101.zip", "101_ObjectCategories split_zhou_Caltech101.json"),
    ),
    _source(
        "oxford_pets", "oxford_pets",
        _packed("images.tar.gz", "images", _torchvision(
            f"{_VGG}/pets/data/images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c",
        )),
        _packed("annotations.tar.gz", "annotations", _torchvision(
            f"{_VGG}/pets/data/annotations.tar.gz", "95a8c909bbe2e81eed6a22bccdf3f68f",
        )),
        _split("OxfordPets", "1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs"),
        copy=_copy("oxford_pets.zip", "images split_zhou_OxfordPets.json"),
    ),
    _source(
        "stanford_cars", "stanford_cars",
        _packed("cars_train.tgz", "cars_train", _tensorflow(
            f"{_CARS}/car196/cars_train.tgz",
            "512b227b30e2f0a8aab9e09485786ab4479582073a144998da74d64b801fd288",
        )),
        _packed("cars_test.tgz", "cars_test", _tensorflow(
            f"{_CARS}/car196/cars_test.tgz",
            "bffea656d6f425cba3c91c6d83336e4c5f86c6cffd8975b0f375d3a10da8e243",
        )),
        _packed("car_devkit.tgz", "devkit", _tensorflow(
            f"{_CARS}/cars/car_devkit.tgz",
            "b97deb463af7d58b6bfaa18b2a4de9829f0f79e8ce663dfa9261bf7810e9accd",
        )),
        _plain("cars_test_annos_withlabels.mat", _tensorflow(
            f"{_CARS}/car196/cars_test_annos_withlabels.mat",
            "790f75be8ea34eeded134cc559332baf23e30e91367e9ddca97d26ed9b895f05",
        )),
        _split("StanfordCars", "1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT"),
        copy=_copy(
            "stanford_cars.zip", "cars_train cars_test split_zhou_StanfordCars.json",
            reported="50812812f33534ef2906b992762f96e8a5bb57b0eedc53800e91b7ed599abf8e",
        ),
    ),
    _source(
        "oxford_flowers", "oxford_flowers",
        _packed("102flowers.tgz", "jpg", _torchvision(
            f"{_VGG}/flowers/102/102flowers.tgz", "52808999861908f626f3c1f4e79d11fa",
        )),
        _plain("imagelabels.mat", _torchvision(
            f"{_VGG}/flowers/102/imagelabels.mat", "e0620be6f572b9609742df49c70aed4d",
        )),
        _plain("cat_to_name.json", _drive("1AkcxCXeK_RCGCEC_GvmWxjcjaNhu-at0")),
        _split("OxfordFlowers", "1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT"),
        copy=_copy(
            "oxford_flowers.zip", "jpg split_zhou_OxfordFlowers.json",
            sha256="bd8d090f0f28581458243cfe4d4a7b1cd5f3a3a8840096adb8bb7ad80020907e",
        ),
    ),
    _source(
        "food101", "food-101",
        _moved(
            "food-101.tar.gz", "food-101", "",
            _torchvision(
                "https://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
                "85eeb15f3717b99a5da872d97d918f87",
            ),
            _reported(
                f"{_HUGGING_FACE}/datasets/ethz/food101/resolve/main/food-101.tar.gz",
                "md5:85eeb15f3717b99a5da872d97d918f87",
            ),
        ),
        _split("Food101", "1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl"),
        copy=_copy("food101.zip", "images split_zhou_Food101.json"),
    ),
    _source(
        "fgvc_aircraft", "fgvc_aircraft",
        _moved("fgvc-aircraft-2013b.tar.gz", "fgvc-aircraft-2013b/data", "", _tensorflow(
            f"{_VGG}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
            "d5f68b1b81d6d7831eb9d5c5517074176b5dfbce6bcb43dc14ed1c66a87b8d75",
        )),
        copy=_copy(
            "fgvc_aircraft.zip",
            "images variants.txt images_variant_train.txt images_variant_val.txt "
            "images_variant_test.txt",
        ),
    ),
    _source(
        "sun397", "sun397",
        _packed("SUN397.tar.gz", "SUN397", _torchvision(
            f"{_SUN}/SUN397.tar.gz", "8ca2778205c41d23104230ba66911c7a",
        )),
        _packed("Partitions.zip", "ClassName.txt Training_01.txt Testing_01.txt", _tensorflow(
            f"{_SUN}/download/Partitions.zip",
            "e3311ea5f812d4cc6faef194688343d1111f6cd6f70f2c62f393c2b8d6ba1ec9",
        )),
        _split("SUN397", "1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq"),
        copy=_copy(
            "sun397.zip", "SUN397 split_zhou_SUN397.json",
            reported="ce6dee6685c9f1d592c8297e193dde885aa9c50d008fd998a38ccc57a3dda722",
        ),
    ),
    _source(
        "dtd", "dtd",
        _moved("dtd-r1.0.1.tar.gz", "dtd", "", _torchvision(
            f"{_VGG}/dtd/download/dtd-r1.0.1.tar.gz", "fff73e5086ae6bdbea199a49dfb8a4c1",
        )),
        _split("DescribableTextures", "1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x"),
        copy=_copy(
            "dtd.zip", "images split_zhou_DescribableTextures.json",
            sha256="5ba4d3000e60f5541ba15a082033ca0696eee68125e9c28edff3dbe22f04313b",
        ),
    ),
    _source(
        "eurosat", "eurosat",
        _packed(
            "EuroSAT.zip", "2750",
            _torchvision(
                f"{_HUGGING_FACE}/datasets/torchgeo/eurosat/resolve/"
                "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
                "c8fa014336c82ac7804f0398fcb19387",
            ),
            _reported(
                "https://madm.dfki.de/files/sentinel/EuroSAT.zip",
                "md5:c8fa014336c82ac7804f0398fcb19387",
            ),
        ),
        _split("EuroSAT", "1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o"),
        copy=_copy("eurosat.zip", "2750 split_zhou_EuroSAT.json"),
    ),
    _source(
        "ucf101", "ucf101",
        _packed(
            "UCF-101-midframes.zip", "UCF-101-midframes",
            _drive_large("10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O"),
            _drive("10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O"),
        ),
        _packed("UCF101TrainTestSplits-RecognitionTask.zip", "ucfTrainTestlist", _tensorflow(
            "https://www.crcv.ucf.edu/data/UCF101/UCF101TrainTestSplits-RecognitionTask.zip",
            "5c0d1a53b8ed364a2ac830a73f405e51bece7d98ce1254fd19ed4a36b224bd27",
        )),
        _split("UCF101", "1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y"),
        copy=_copy(
            "ucf101.zip", "UCF-101-midframes split_zhou_UCF101.json",
            reported="2fe1bd40e64408d02ff173badf744da557033ae6c75dd4ea51519366551f3ae6",
        ),
    ),
    _source(
        "imagenetv2", "imagenetv2",
        _packed(
            "imagenetv2-matched-frequency.tar.gz", "imagenetv2-matched-frequency-format-val",
            _tensorflow(
                f"{_HUGGING_FACE}/datasets/vaishaal/ImageNetV2/resolve/main/"
                "imagenetv2-matched-frequency.tar.gz",
                "f0c37fdf925916b19ea1323cd9a2208cdb6959ba2c32eef2a7fc393835c9ca7c",
            ),
            _tensorflow(
                "https://s3-us-west-2.amazonaws.com/imagenetv2public/"
                "imagenetv2-matched-frequency.tar.gz",
                "a32004f9e773279307499059d320336a23ccdc62cb32063da29bae9bd04c122c",
            ),
        ),
        _CLASS_NAMES,
    ),
    _source(
        "imagenet_sketch", "imagenet-sketch",
        _moved(
            "ImageNet-Sketch.zip", "sketch", "images",
            _drive_large("1Mj0i5HBthqH1p_yeXzsg22gZduvgoNeA", _SKETCH),
            _reported(
                f"{_HUGGING_FACE}/datasets/songweig/imagenet_sketch/resolve/main/data/"
                "ImageNet-Sketch.zip",
                _SKETCH,
            ),
        ),
        _CLASS_NAMES,
    ),
    _source(
        "imagenet_a", "imagenet-adversarial",
        _packed("imagenet-a.tar", "imagenet-a", _tensorflow(
            f"{_HENDRYCKS}/imagenet-a.tar",
            "3bb3632277e6ba6392ea64c02ddbf4dd2266c9caffd6bc09c9656d28f012589e",
        )),
        _CLASS_NAMES,
    ),
    _source(
        "imagenet_r", "imagenet-rendition",
        _packed("imagenet-r.tar", "imagenet-r", _tensorflow(
            f"{_HENDRYCKS}/imagenet-r.tar",
            "18c6bf493b39a0d975d48e587437f562caab9c52ae6327dcfa9dd8eb54aa1b52",
        )),
        _CLASS_NAMES,
    ),
)  # fmt: skip

_BY_NAME = {row.name: row for row in _ROWS}
