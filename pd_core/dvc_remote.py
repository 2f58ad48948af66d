"""DVC's remote as the settings say, so that machines share outputs without DVC's own commands.

The address goes into `.dvc/config.local`, which git ignores and DVC reads last; the credentials go
into the environment of DVC's process and nowhere else.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import copy2
from tempfile import TemporaryDirectory
from typing import Any

from pd_core import preemption
from pd_core.errors import PdError
from pd_core.settings import Settings

NAME = "shared"
"""What DVC calls the remote; it belongs to the settings, so nothing else is kept about it."""


def push(targets: Sequence[str]) -> int:
    """Copy outputs to the remote, and what DVC knows of the runs that made them.

    Without the latter another clone could not take an output whose `dvc.lock` it does not have.

    Args:
        targets: stages or files, or other arguments of `dvc push`; all outputs by default.

    Returns:
        DVC's exit status. SIGTERM ends the process at once, as `preemption` says.
    """
    from dvc.cli import main

    with preemption.postponed(_end):
        return int(main(["--wait-for-lock", "push", "--run-cache", *targets]))


def prepare(settings: Settings, root: Path) -> None:
    """Let DVC, in this process, use the remote of the settings; nothing is done if they name none.

    Args:
        settings: what the environment decides.
        root: folder of `.dvc`.

    Raises:
        PdError: DVC cannot read its own settings, or they cannot be written.
    """
    if settings.dvc_remote is None:
        return
    configure(root, settings.dvc_remote, settings.s3_endpoint_url)
    if given := credentials(settings):
        os.environ.pop("AWS_SESSION_TOKEN", None)  # belongs to a key that is replaced
        os.environ.update(given)


def configure(root: Path, address: str, endpoint_url: str | None) -> None:
    """Make an address DVC's default remote, as `shared`; other remotes and settings stay.

    The file is written whole, and only if it has to change: another DVC may be reading it.

    Args:
        root: folder of `.dvc`.
        address: `s3://<bucket>/<prefix>`, or a folder.
        endpoint_url: the S3 server, if the address is on S3; None for Amazon's.

    Raises:
        PdError: DVC cannot read its own settings, or they cannot be written.
    """
    from dvc.config import Config, ConfigError

    folder = root / ".dvc"
    remote = {"url": address}
    if endpoint_url and _on_s3(address):
        remote["endpointurl"] = endpoint_url
    try:
        if not _is_default(Config(folder).read("local"), remote):
            with (
                _rewritten(folder / "config.local") as copy,
                Config(folder, local_dvc_dir=copy).edit("local") as values,
            ):
                values["core"]["remote"] = NAME
                values["remote"][NAME] = remote
    except ConfigError:  # its text may hold a secret
        raise PdError(
            f"DVC cannot read its settings in '{folder}'; run `dvc config --list`, it says why"
        ) from None
    except OSError as error:
        raise PdError(
            f"PD_DVC_REMOTE cannot be set in '{folder}' ({error.strerror}); make it writable"
        ) from None


def credentials(settings: Settings) -> dict[str, str]:
    """Return the environment variables by which DVC's process gets at the remote; they are secret.

    Args:
        settings: what the environment decides.

    Returns:
        Variable -> value; empty where boto3 is to look for its own, or the remote is a folder.
    """
    if not _on_s3(settings.dvc_remote or ""):
        return {}
    secrets = {
        "AWS_ACCESS_KEY_ID": settings.s3_access_key_id,
        "AWS_SECRET_ACCESS_KEY": settings.s3_secret_access_key,
    }
    return {name: one.get_secret_value() for name, one in secrets.items() if one is not None}


def _end() -> None:
    """End without DVC, which takes an exception for a file that failed, and goes on to the next."""
    sys.stderr.write(f"stopped: {preemption.TOLD}\n")
    sys.stderr.flush()
    os._exit(preemption.EXIT_STATUS)


def _on_s3(address: str) -> bool:
    return address.startswith("s3://")


def _is_default(values: Mapping[str, Any], remote: Mapping[str, str]) -> bool:
    """Whether DVC's own settings say the same already."""
    return bool(values["core"].get("remote") == NAME and values["remote"].get(NAME) == remote)


@contextmanager
def _rewritten(file: Path) -> Iterator[Path]:
    """Have a copy of a file changed, in a folder of its own, then put it in the file's place."""
    temporary = file.parent / "tmp"
    temporary.mkdir(exist_ok=True)
    with TemporaryDirectory(dir=temporary) as name:
        copy = Path(name) / file.name
        if file.exists():
            copy2(file, copy)  # with its mode: it may hold secrets
        yield copy.parent
        copy.replace(file)
