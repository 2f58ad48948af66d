"""What is known of a file to download: its addresses, its checksums, what it becomes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Origin(StrEnum):
    """Who says that a file is at an address, and has that checksum."""

    TORCHVISION = "torchvision"
    TENSORFLOW = "TensorFlow Datasets"
    OPEN_CLIP = "open_clip"
    COOP = "CoOp's DATASETS.md"
    AUTHORS = "the repository of the paper's authors"
    REPORTED = "users' scripts"


@dataclass(frozen=True)
class Address:
    """One place where a file can be had.

    Attributes:
        url: Where.
        origin: Who says so.
        checksum: `md5:` or `sha256:` and hexadecimal digits; empty if none is known.
        unverified: Whether nobody with authority published a checksum of what is there.
    """

    url: str
    origin: Origin
    checksum: str = ""
    unverified: bool = True


@dataclass(frozen=True)
class Placement:
    """What to take out of an archive, and where it goes.

    Attributes:
        found: Path in the archive, looked for at the top and up to two folders below it, so that
            a folder around everything does not matter; for a plain file its own name.
        placed: Path below the folder of the data set; empty for the folder itself.
    """

    found: str
    placed: str


@dataclass(frozen=True)
class RemoteFile:
    """A file to get.

    Attributes:
        name: What it is called once it is here.
        addresses: Where to get it, best first. Bytes may differ, what they unpack to may not.
        placements: What it becomes.
        nested: Archives inside, by name, that are unpacked where they lie.
    """

    name: str
    addresses: tuple[Address, ...]
    placements: tuple[Placement, ...] = ()
    nested: tuple[str, ...] = ()

    @property
    def is_archive(self) -> bool:
        """Whether it has to be unpacked."""
        return self.name.endswith((".zip", ".tar", ".tar.gz", ".tgz"))

    @property
    def checksums(self) -> tuple[str, ...]:
        """The checksums that it may have, one an address; empty if an address has none."""
        known = tuple(address.checksum for address in self.addresses)
        return known if all(known) else ()


@dataclass(frozen=True)
class Source:
    """How a data set is got.

    Attributes:
        name: The catalogue's name.
        folder: Folder below the data root.
        routes: Sets of files, best first; each alone is enough.
        by_hand: What the user has to do first, with `{folder}` for the folder; empty if nothing.
        needs: What is in the folder once that is done.
    """

    name: str
    folder: str
    routes: tuple[tuple[RemoteFile, ...], ...]
    by_hand: str = ""
    needs: str = ""


def torchvision(url: str, md5: str) -> Address:
    """Make an address that torchvision has in its sources."""
    return Address(url, Origin.TORCHVISION, f"md5:{md5}", unverified=False)


def tensorflow(url: str, sha256: str) -> Address:
    """Make an address whose checksum TensorFlow Datasets recorded."""
    return Address(url, Origin.TENSORFLOW, f"sha256:{sha256}", unverified=False)


def reported(url: str, checksum: str = "") -> Address:
    """Make an address that users' scripts have."""
    return Address(url, Origin.REPORTED, checksum)


def drive(file_id: str) -> Address:
    """Make an address of a small file on Google Drive that CoOp's instructions name."""
    return Address(f"https://drive.google.com/uc?export=download&id={file_id}", Origin.COOP)


def drive_large(file_id: str, checksum: str = "") -> Address:
    """Make an address that skips Google Drive's question whether to forgo the virus scan."""
    host = "https://drive.usercontent.google.com"
    return reported(f"{host}/download?id={file_id}&export=download&confirm=t", checksum)


def plain(name: str, *addresses: Address) -> RemoteFile:
    """Describe a file that is used as it is, in the data set's folder."""
    return RemoteFile(name, addresses, (Placement(name, name),))


def packed(name: str, wanted: str, *addresses: Address, nested: tuple[str, ...] = ()) -> RemoteFile:
    """Describe an archive.

    Args:
        name: Of the archive.
        wanted: Names in it that are kept and keep their names, blanks between them.
        addresses: Where to get it.
        nested: Archives inside, by name.
    """
    placements = tuple(Placement(path, path) for path in wanted.split())
    return RemoteFile(name, addresses, placements, nested)


def moved(name: str, found: str, placed: str, *addresses: Address) -> RemoteFile:
    """Describe an archive of which one folder is kept, in another place.

    Args:
        name: Of the archive.
        found: The folder in it.
        placed: Where it goes, below the data set's folder; empty for that folder itself.
        addresses: Where to get it.
    """
    return RemoteFile(name, addresses, (Placement(found, placed),))
