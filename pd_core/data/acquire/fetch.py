"""Get data sets and weights: from their origins, or from the mirror.

What is downloaded is kept in `<data root>/archives/<data set>/`, as it came, so that it can be
mirrored; `<file>.unpacked` beside it says that it was unpacked. Both may be deleted to save room:
without the note a file is unpacked again, without the archive it is fetched again for that.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pd_core.core.errors import BadData, MissingFile, PdError, missing
from pd_core.data.acquire import mirror
from pd_core.data.acquire.archives import LIMITS, Limits, place, unpack
from pd_core.data.acquire.download import OnProgress, digest, download, writing
from pd_core.data.acquire.mirror import Mirror
from pd_core.data.acquire.sources import FOLDER as WEIGHTS
from pd_core.data.acquire.sources import Address, RemoteFile, Source

ARCHIVES = "archives"
"""Folder below the data root that keeps what was downloaded."""

OnNote = Callable[[str], None]
"""Called with a line about each thing done."""
Watch = Callable[[str], AbstractContextManager[OnProgress]]
"""Makes what shows the progress of something with a title."""


def fetch(
    source: Source, root: Path, *, watch: Watch, on_note: OnNote, limits: Limits = LIMITS
) -> None:
    """Download and unpack a data set; what is done already is not done again.

    Args:
        source: The data set.
        root: Folder that holds all data sets.
        watch: Shows progress.
        on_note: Told what was done.
        limits: What an archive may unpack to.

    Raises:
        MissingFile: The user has to do something first.
        BadData: No route led to the data set; the message has each with its reason.
        PdError: The disk is full or cannot be written, or another process fetches it.
    """
    _require_by_hand(source, root)
    with _alone(source, root) as kept:
        reasons = []
        for route in sorted(source.routes, key=lambda route: not _all_here(route, kept)):
            try:
                for file in _small_first(route):
                    if not _is_unpacked(source, file, root):
                        _bring(file, kept / file.name, watch, on_note)
                for file in route:
                    _install(source, file, root, limits, watch, on_note)
            except BadData as error:
                reasons.append(str(error))
            else:
                return
    raise BadData(f"data set '{source.name}': {'; or else: '.join(reasons)}")


def push(source: Source, root: Path, to: Mirror, *, watch: Watch, on_note: OnNote) -> None:
    """Copy the kept archives of a data set to the mirror; what it has is not sent again.

    Args:
        source: The data set.
        root: Folder that holds all data sets.
        to: The mirror.
        watch: Shows progress.
        on_note: Told what was done.

    Raises:
        MissingFile: Archives are missing.
        PdError: The mirror cannot be reached, or refuses.
    """
    kept = root / ARCHIVES / source.name
    route = next((route for route in source.routes if _all_here(route, kept)), None)
    if route is None:
        raise missing(
            f"archives of '{source.name}'", kept, f"run `promptkd data fetch {source.name}`"
        )
    for file in route:
        path = f"{ARCHIVES}/{source.name}/{file.name}"
        _push(to, kept / file.name, path, watch, on_note)


def pull(
    source: Source,
    root: Path,
    origin: Mirror,
    *,
    watch: Watch,
    on_note: OnNote,
    limits: Limits = LIMITS,
) -> None:
    """Get the archives of a data set from the mirror, and unpack them.

    Args:
        source: The data set.
        root: Folder that holds all data sets.
        origin: The mirror.
        watch: Shows progress.
        on_note: Told what was done.
        limits: What an archive may unpack to.

    Raises:
        MissingFile: The mirror does not have all archives, or the user has to do something first.
        BadData: What came is damaged.
        PdError: The mirror cannot be reached, or refuses; or the disk is full.
    """
    _require_by_hand(source, root)
    for route in source.routes:
        paths = {file: f"{ARCHIVES}/{source.name}/{file.name}" for file in route}
        if all(mirror.has(origin, path) for path in paths.values()):
            break
    else:
        raise MissingFile(
            f"the mirror s3://{origin.bucket}/{origin.prefix} does not have '{source.name}'; run "
            f"`promptkd data mirror push {source.name}` where it was fetched"
        )
    with _alone(source, root) as kept:
        for file, path in paths.items():
            if not _is_unpacked(source, file, root):
                _pull(origin, path, kept / file.name, file.checksums, watch, on_note)
                _install(source, file, root, limits, watch, on_note)


def fetch_weights(file: RemoteFile, root: Path, *, watch: Watch, on_note: OnNote) -> None:
    """Download weights to where the profiles look for them, unless they are there.

    Args:
        file: The weights.
        root: Folder that holds all data sets, and the folder of the weights.
        watch: Shows progress.
        on_note: Told what was done.

    Raises:
        BadData: No address gave them.
        PdError: The disk is full or cannot be written.
    """
    _bring(file, root / WEIGHTS / file.name, watch, on_note)


def check_weights(file: RemoteFile, root: Path) -> str:
    """Say what is wrong with weights; nothing if they are there and what they should be."""
    target = root / WEIGHTS / file.name
    if not target.is_file():
        return f"not found; run `promptkd weights fetch {file.name}`"
    found = digest(target, file.checksums[0])
    if found in file.checksums:
        return ""
    expected = " or ".join(file.checksums)
    return f"has {found}, expected {expected}; run `promptkd weights fetch {file.name}`"


def push_weights(
    file: RemoteFile, root: Path, to: Mirror, *, watch: Watch, on_note: OnNote
) -> None:
    """Copy weights to the mirror, unless it has them.

    Args:
        file: The weights.
        root: Folder that holds the folder of the weights.
        to: The mirror.
        watch: Shows progress.
        on_note: Told what was done.

    Raises:
        BadData: They are missing or damaged.
        PdError: The mirror cannot be reached, or refuses.
    """
    target = root / WEIGHTS / file.name
    if problem := check_weights(file, root):
        raise BadData(f"weights '{target}': {problem}")
    _push(to, target, f"{WEIGHTS}/{file.name}", watch, on_note)


def pull_weights(
    file: RemoteFile, root: Path, origin: Mirror, *, watch: Watch, on_note: OnNote
) -> None:
    """Get weights from the mirror, unless they are here.

    Args:
        file: The weights.
        root: Folder that holds the folder of the weights.
        origin: The mirror.
        watch: Shows progress.
        on_note: Told what was done.

    Raises:
        MissingFile: The mirror does not have them.
        BadData: What came is damaged.
        PdError: The mirror cannot be reached, or refuses; or the disk is full.
    """
    target = root / WEIGHTS / file.name
    _pull(origin, f"{WEIGHTS}/{file.name}", target, file.checksums, watch, on_note)


def _require_by_hand(source: Source, root: Path) -> None:
    folder = root / source.folder
    if source.by_hand and not (folder / source.needs).exists():
        raise MissingFile(source.by_hand.format(folder=folder))


@contextmanager
def _alone(source: Source, root: Path) -> Iterator[Path]:
    """Keep other processes from the archives of a data set; return their folder."""
    kept = root / ARCHIVES / source.name
    with writing(kept):
        kept.mkdir(parents=True, exist_ok=True)
        lock = FileLock(kept / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise PdError(
                f"another process is fetching '{source.name}' to '{root}'; wait for it"
            ) from None
    try:
        yield kept
    finally:
        lock.release()


def _all_here(route: Sequence[RemoteFile], kept: Path) -> bool:
    return all((kept / file.name).is_file() for file in route)


def _small_first(route: Sequence[RemoteFile]) -> list[RemoteFile]:
    """Put plain files first: if one cannot be had, nothing large was downloaded in vain."""
    return sorted(route, key=lambda file: file.is_archive)


def _bring(file: RemoteFile, target: Path, watch: Watch, on_note: OnNote) -> None:
    """Download a file, unless it is here and is what it should be."""
    if target.is_file() and _is_right(file, target):
        on_note(f"{file.name}: here already")
        return
    with watch(f"fetch {file.name}") as on_progress:
        address = download(file.addresses, target, on_progress=on_progress)
    on_note(f"{file.name}: fetched from {address.url} ({trust(address)})")


def trust(address: Address) -> str:
    """Say how far an address can be trusted."""
    kind = address.checksum.partition(":")[0]
    if not address.unverified:
        return f"{kind} as in {address.origin}"
    known = f"{kind} from users' reports" if address.checksum else "no checksum known"
    return f"unverified: {known}, address from {address.origin}"


def _is_right(file: RemoteFile, target: Path) -> bool:
    known = file.checksums
    return not known or any(digest(target, checksum) == checksum for checksum in known)


def _note_of(source: Source, file: RemoteFile, root: Path) -> Path:
    return root / ARCHIVES / source.name / f"{file.name}.unpacked"


def _is_unpacked(source: Source, file: RemoteFile, root: Path) -> bool:
    targets = (root / source.folder / item.placed for item in file.placements)
    return _note_of(source, file, root).is_file() and all(path.exists() for path in targets)


def _install(
    source: Source, file: RemoteFile, root: Path, limits: Limits, watch: Watch, on_note: OnNote
) -> None:
    """Put what a kept file holds where it belongs, all of it or nothing."""
    if _is_unpacked(source, file, root):
        return
    kept, folder = root / ARCHIVES / source.name / file.name, root / source.folder
    tree = root / f".unpacking-{source.name}-{file.name}"  # on the disk where things go
    with writing(tree):
        shutil.rmtree(tree, ignore_errors=True)  # of a process that was killed
    try:
        if file.is_archive:
            with watch(f"unpack {file.name}") as on_progress:
                unpack(kept, tree, nested=file.nested, limits=limits, on_progress=on_progress)
        else:
            with writing(tree):
                tree.mkdir()
                shutil.copyfile(kept, tree / file.name)
        place(tree, file.placements, folder)
    finally:
        shutil.rmtree(tree, ignore_errors=True)
    note = _note_of(source, file, root)
    with writing(note):
        note.write_text(json.dumps({"placed": [item.placed for item in file.placements]}) + "\n")
    on_note(f"{file.name}: placed in {folder}")


def _push(to: Mirror, target: Path, path: str, watch: Watch, on_note: OnNote) -> None:
    with watch(f"push {target.name}") as on_progress:
        sent = mirror.push(to, target, path, on_progress=on_progress)
    on_note(f"{target.name}: {'pushed' if sent else 'on the mirror already'}")


def _pull(
    origin: Mirror,
    path: str,
    target: Path,
    checksums: tuple[str, ...],
    watch: Watch,
    on_note: OnNote,
) -> None:
    with watch(f"pull {target.name}") as on_progress:
        came = mirror.pull(origin, path, target, checksums=checksums, on_progress=on_progress)
    on_note(f"{target.name}: {'pulled' if came else 'here already'}")
