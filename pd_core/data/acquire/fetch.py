"""Fetch data sets and CLIP weights from their origins or the mirror, and unpack them.

Downloads are kept as they came in `<data root>/archives/<data set>/`, for the mirror;
`<file>.unpacked` beside one records that it was unpacked. Both may be deleted to save space:
without the record a file is unpacked again, without the archive it is downloaded again first.

An archive is unpacked completely into a temporary folder, from which the wanted folders and files
are moved to where they belong (see `archives`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from pd_core.core.errors import BadData, MissingFile, PdError, missing
from pd_core.core.hooks import OnNote, OnProgress
from pd_core.data.acquire.archives import LIMITS, Limits, place, unpack
from pd_core.data.acquire.download import digest, download, has_checksum, writing
from pd_core.data.acquire.mirror import Mirror
from pd_core.data.acquire.sources import WEIGHTS, Address, RemoteFile, Source

ARCHIVES = "archives"
"""Folder below the data root that keeps the downloads."""

Watch = Callable[[str], AbstractContextManager[OnProgress]]


@dataclass(frozen=True)
class Fetcher:
    """Fetches data sets and weights; files that are complete are not fetched again.

    Its methods raise MissingFile if the user has to do something first or files are not there,
    BadData if a download is corrupt or no address served it, and PdError if the disk is full or
    cannot be written, another process fetches the same data set, or the mirror refuses.

    Attributes:
        root: Data root, which holds all data sets and the folder of the weights.
        watch: Opens a progress display with a title, in bytes.
        on_note: Called with a line about each completed step.
        limits: Limits of archives.
    """

    root: Path
    watch: Watch
    on_note: OnNote
    limits: Limits = LIMITS

    def fetch(self, source: Source) -> None:
        """Download and unpack a data set, by the first of its routes that succeeds."""
        self._require_manual_step(source)
        with self._locked(source) as archives:
            reasons = []
            for route in sorted(source.routes, key=lambda route: not _all_in(archives, route)):
                try:
                    # Small files first: if one of them fails, no large one was downloaded in vain.
                    for file in sorted(route, key=lambda file: file.is_archive):
                        if not self._is_unpacked(source, file):
                            self._download(file, archives / file.name)
                    for file in route:
                        self._install(source, file)
                except BadData as error:
                    reasons.append(str(error))
                else:
                    return
        raise BadData(f"data set '{source.name}': {'; or else: '.join(reasons)}")

    def push(self, source: Source, mirror: Mirror) -> None:
        """Upload the downloaded archives of a data set to the mirror."""
        archives = self._archives(source)
        route = next((route for route in source.routes if _all_in(archives, route)), None)
        if route is None:
            remedy = f"run `promptkd data fetch {source.name}`"
            raise missing(f"archives of '{source.name}'", archives, remedy)
        for file in route:
            self._push(mirror, archives / file.name)

    def pull(self, source: Source, mirror: Mirror) -> None:
        """Download the archives of a data set from the mirror, and unpack them."""
        self._require_manual_step(source)
        archives = self._archives(source)
        for route in source.routes:
            if all(mirror.has(self._key(archives / file.name)) for file in route):
                break
        else:
            raise MissingFile(
                f"the mirror {mirror.url()} does not have '{source.name}'; run `promptkd data "
                f"mirror push {source.name}` where it was fetched"
            )
        with self._locked(source):
            for file in route:
                if not self._is_unpacked(source, file):
                    self._pull(mirror, archives / file.name, file)
                    self._install(source, file)

    def fetch_weights(self, file: RemoteFile) -> None:
        """Download weights to the folder that params.yaml refers to."""
        self._download(file, self.root / WEIGHTS / file.name)

    def push_weights(self, file: RemoteFile, mirror: Mirror) -> None:
        """Upload weights to the mirror."""
        target = self.root / WEIGHTS / file.name
        if problem := check_weights(file, self.root):
            raise BadData(f"weights '{target}': {problem}")
        self._push(mirror, target)

    def pull_weights(self, file: RemoteFile, mirror: Mirror) -> None:
        """Download weights from the mirror."""
        self._pull(mirror, self.root / WEIGHTS / file.name, file)

    def _archives(self, source: Source) -> Path:
        return self.root / ARCHIVES / source.name

    def _key(self, target: Path) -> str:
        return target.relative_to(self.root).as_posix()

    def _require_manual_step(self, source: Source) -> None:
        folder = self.root / source.folder
        if source.by_hand and not (folder / source.needs).exists():
            raise MissingFile(source.by_hand.format(folder=folder))

    @contextmanager
    def _locked(self, source: Source) -> Iterator[Path]:
        """Lock the archives of a data set against other processes; yield their folder."""
        archives = self._archives(source)
        with writing(archives):
            archives.mkdir(parents=True, exist_ok=True)
            lock = FileLock(archives / ".lock", timeout=0)
            try:
                lock.acquire()
            except Timeout:
                raise PdError(
                    f"another process is fetching '{source.name}' to '{self.root}'; wait for it"
                ) from None
        try:
            yield archives
        finally:
            lock.release()

    def _download(self, file: RemoteFile, target: Path) -> None:
        """Download a file, unless it is there with the right checksum."""
        if target.is_file() and (not file.checksums or has_checksum(target, file.checksums)):
            self.on_note(f"{file.name}: here already")
            return
        with self.watch(f"fetch {file.name}") as on_progress:
            address = download(file.addresses, target, on_progress=on_progress)
        self.on_note(f"{file.name}: fetched from {address.url} ({trust(address)})")

    def _push(self, mirror: Mirror, target: Path) -> None:
        with self.watch(f"push {target.name}") as on_progress:
            sent = mirror.push(target, self._key(target), on_progress=on_progress)
        self.on_note(f"{target.name}: {'pushed' if sent else 'on the mirror already'}")

    def _pull(self, mirror: Mirror, target: Path, file: RemoteFile) -> None:
        with self.watch(f"pull {target.name}") as on_progress:
            pulled = mirror.pull(
                self._key(target), target, checksums=file.checksums, on_progress=on_progress
            )
        self.on_note(f"{target.name}: {'pulled' if pulled else 'here already'}")

    def _record_of(self, source: Source, file: RemoteFile) -> Path:
        return self._archives(source) / f"{file.name}.unpacked"

    def _is_unpacked(self, source: Source, file: RemoteFile) -> bool:
        targets = (self.root / source.folder / item.target for item in file.placements)
        return self._record_of(source, file).is_file() and all(path.exists() for path in targets)

    def _install(self, source: Source, file: RemoteFile) -> None:
        """Unpack a downloaded file and move its content to where it belongs."""
        if self._is_unpacked(source, file):
            return
        archive, folder = self._archives(source) / file.name, self.root / source.folder
        tree = self.root / f".unpacking-{source.name}-{file.name}"  # on the target's disk
        with writing(tree):
            shutil.rmtree(tree, ignore_errors=True)  # of a killed process
        try:
            if file.is_archive:
                with self.watch(f"unpack {file.name}") as progress:
                    unpack(
                        archive, tree, nested=file.nested, limits=self.limits, on_progress=progress
                    )
            else:
                with writing(tree):
                    tree.mkdir()
                    shutil.copyfile(archive, tree / file.name)
            place(tree, file.placements, folder)
        finally:
            shutil.rmtree(tree, ignore_errors=True)
        record = self._record_of(source, file)
        with writing(record):
            record.write_text(json.dumps({"placed": [p.target for p in file.placements]}) + "\n")
        self.on_note(f"{file.name}: placed in {folder}")


def check_weights(file: RemoteFile, root: Path) -> str:
    """Return what is wrong with a file of weights; empty if its checksum is right or not known."""
    target = root / WEIGHTS / file.name
    if not target.is_file():
        return f"not found; run `promptkd weights fetch {file.name}`"
    if not file.checksums:
        return ""
    actual = digest(target, file.checksums[0])
    if actual in file.checksums:
        return ""
    expected = " or ".join(file.checksums)
    return f"has {actual}, expected {expected}; run `promptkd weights fetch {file.name}`"


def trust(address: Address) -> str:
    """Return where the checksum of an address comes from, in words."""
    kind = address.checksum.partition(":")[0]
    if not address.unverified:
        return f"{kind} as in {address.origin}"
    checksum = f"{kind} from users' reports" if address.checksum else "no checksum known"
    return f"unverified: {checksum}, address from {address.origin}"


def _all_in(folder: Path, route: Sequence[RemoteFile]) -> bool:
    return all((folder / file.name).is_file() for file in route)
