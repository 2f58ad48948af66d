"""Sources of data sets as a server on loopback has them."""

import gzip
import hashlib
from dataclasses import replace

from archive_files import tarred, zipped
from file_server import FileServer

from pd_core.data.acquire.sources import (
    Address,
    Origin,
    RemoteFile,
    Source,
)

# Miniatures of the archives as their origins lay them out.
ARCHIVES = {
    "caltech101": {
        "caltech-101.zip": zipped(
            {
                "caltech-101/101_ObjectCategories.tar.gz": gzip.compress(
                    tarred({"101_ObjectCategories/ant/image_0001.jpg": b"ant"})
                ),
                "caltech-101/Annotations.tar": b"not needed",
                "__MACOSX/caltech-101/._101_ObjectCategories.tar.gz": b"x",
            }
        ),
        "split_zhou_Caltech101.json": b"{}",
    },
    "fgvc_aircraft": {
        "fgvc-aircraft-2013b.tar.gz": gzip.compress(
            tarred(
                {
                    "fgvc-aircraft-2013b/data/images/0034309.jpg": b"plane",
                    "fgvc-aircraft-2013b/data/variants.txt": b"707-320\n",
                    "fgvc-aircraft-2013b/evaluation.m": b"not needed",
                }
            )
        ),
    },
    "oxford_pets": {
        "images.tar.gz": gzip.compress(tarred({"images/Abyssinian_1.jpg": b"cat"})),
        "annotations.tar.gz": gzip.compress(tarred({"./annotations/test.txt": b"list"})),
        "split_zhou_OxfordPets.json": b"{}",
    },
    "sun397": {
        "SUN397.tar.gz": gzip.compress(tarred({"SUN397/a/abbey/sun_a.jpg": b"abbey"})),
        "Partitions.zip": zipped(
            {
                "ClassName.txt": b"/a/abbey\n",
                "Training_01.txt": b"",
                "Testing_01.txt": b"",
                "Testing_02.txt": b"not needed",
            }
        ),
        "split_zhou_SUN397.json": b"{}",
    },
    "dtd": {
        "dtd-r1.0.1.tar.gz": gzip.compress(tarred({"dtd/images/banded/banded_0002.jpg": b"b"})),
        "split_zhou_DescribableTextures.json": b"{}",
    },
    "imagenet_sketch": {
        "ImageNet-Sketch.zip": zipped({"sketch/n01440764/sketch_0.JPEG": b"fish"}),
        "classnames.txt": b"n01440764 tench\n",
    },
}


LAYOUTS = {
    "caltech101": {
        "caltech-101/101_ObjectCategories/ant/image_0001.jpg",
        "caltech-101/split_zhou_Caltech101.json",
    },
    "fgvc_aircraft": {"fgvc_aircraft/images/0034309.jpg", "fgvc_aircraft/variants.txt"},
    "oxford_pets": {
        "oxford_pets/images/Abyssinian_1.jpg",
        "oxford_pets/annotations/test.txt",
        "oxford_pets/split_zhou_OxfordPets.json",
    },
    "sun397": {
        "sun397/SUN397/a/abbey/sun_a.jpg",
        "sun397/ClassName.txt",
        "sun397/Training_01.txt",
        "sun397/Testing_01.txt",
        "sun397/split_zhou_SUN397.json",
    },
    "dtd": {"dtd/images/banded/banded_0002.jpg", "dtd/split_zhou_DescribableTextures.json"},
    "imagenet_sketch": {
        "imagenet-sketch/images/n01440764/sketch_0.JPEG",
        "imagenet-sketch/classnames.txt",
    },
}


def served(source: Source, contents: dict[str, bytes], server: FileServer) -> Source:
    """Replace the addresses of a row's first route by ours, and nothing else."""

    def ours(file: RemoteFile) -> RemoteFile:
        content = contents[file.name]
        server.add(file.name, content)
        checksum = f"sha256:{hashlib.sha256(content).hexdigest()}"
        return replace(file, addresses=(Address(server.url(file.name), Origin.REPORTED, checksum),))

    return replace(source, routes=(tuple(ours(file) for file in source.routes[0]),))
