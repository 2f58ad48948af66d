"""Where the weights of CLIP come from: one row a file."""

from __future__ import annotations

from pd_core.data.remote_files import Address, Origin, RemoteFile
from pd_core.errors import unknown

FOLDER = "weights"
"""Their folder, below the data root."""


def _openai(name: str, sha256: str) -> RemoteFile:
    """Make a row; the address holds the checksum, and open_clip has both in its sources."""
    url = f"https://openaipublic.azureedge.net/clip/models/{sha256}/{name}"
    return RemoteFile(name, (Address(url, Origin.OPEN_CLIP, f"sha256:{sha256}", unverified=False),))


_ROWS = {
    file.name: file
    for file in (
        _openai("ViT-B-16.pt", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"),
        _openai("ViT-L-14.pt", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"),
    )
}


def weight_names() -> tuple[str, ...]:
    """Names of all files."""
    return tuple(_ROWS)


def weights_file(name: str) -> RemoteFile:
    """Return the row of a file.

    Raises:
        UnknownName: There is none.
    """
    if name not in _ROWS:
        raise unknown("weights", name, _ROWS)
    return _ROWS[name]
