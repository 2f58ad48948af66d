"""Lock of a model's aliases: MLflow overwrites an alias without a check, so the lock is our own.

On one machine it is a file lock, beside the local database or in the folder for temporary files;
the kernel releases it when its process ends. Machines share a tracking server: there a registered
model with a reserved name is the lock as well, since creating it succeeds for one process only. A
holder that is gone loses it: on the same machine when its process has ended, on another one when
it has not renewed its tag `alive` for a while, by clocks that are assumed to agree.
"""

from __future__ import annotations

import hashlib
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from filelock import FileLock, Timeout

from pd_core.core.errors import PdError
from pd_core.mlops import tracking
from pd_core.mlops.registry import ignoring, refusals
from pd_core.mlops.tracking import SQLITE
from pd_core.mlops.tracking.nesting import is_running, this_process

if TYPE_CHECKING:
    from mlflow import MlflowClient

RESERVED = "lock."
"""Prefix of the names of locks in the registry; no model's name begins with it."""

_BEAT = 10.0  # seconds between two renewals
_SILENCE = 180.0  # seconds without one, after which a holder on another machine counts as gone
_SETTLE = 1.0  # seconds after which two that took the same lock over see each other


class Busy(PdError):
    """Another process holds the lock."""


class Held:
    """The lock, while it is held."""

    def check(self) -> None:
        """Raise `Busy` if another process has taken it over; nothing may be changed then."""


@contextmanager
def promotion(store: str, name: str, *, user: str) -> Iterator[Held]:
    """Hold the lock of a model's aliases.

    Args:
        store: the address that `tracking.open_store` returned.
        name: of the model.
        user: the user, named in the errors of other processes meanwhile.

    Raises:
        Busy: another process holds it.
        PdError: it cannot be taken for another reason.
    """
    with _on_this_machine(store, name, user):
        if store.startswith(SQLITE):
            yield Held()
        else:
            with _in_the_registry(store, name, user) as lock:
                yield lock


@contextmanager
def _on_this_machine(store: str, name: str, user: str) -> Iterator[None]:
    path = _path(store, name)
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
        path.write_text(f"{user}, process {os.getpid()}, since {clock(time.time())}")
    except Timeout:
        raise _busy(name, path.read_text().strip() or "another process") from None
    except OSError as error:
        raise PdError(
            f"cannot lock '{path}' ({error.strerror}); make its folder writable"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _path(store: str, name: str) -> Path:
    if store.startswith(SQLITE):
        return Path(f"{store.removeprefix(SQLITE)}-{name}.lock")
    key = hashlib.sha256(f"{store} {name}".encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"promptkd-{os.getuid()}-{key}.lock"


@contextmanager
def _in_the_registry(store: str, name: str, user: str) -> Iterator[Held]:
    with refusals(f"lock '{name}'", store):
        lock = _RegistryLock(tracking.client(store), name, user)
        lock.take()
    stop = threading.Event()
    renewal = threading.Thread(target=lock.renew, args=(stop,), daemon=True)
    renewal.start()
    try:
        yield lock
    finally:
        stop.set()
        renewal.join()
        lock.release()


@dataclass
class _RegistryLock(Held):
    mlflow: MlflowClient
    model: str
    user: str
    token: str = field(default_factory=lambda: uuid4().hex)

    @property
    def name(self) -> str:
        return f"{RESERVED}{self.model}"

    def take(self) -> None:
        """Create the lock; take it over from a holder that is gone.

        Raises:
            Busy: the holder is alive, or another process was faster.
        """
        if self._create():
            return
        holder = self._holder()
        if holder and _is_alive(holder):
            raise _busy(self.model, _described(holder))
        self._delete()
        if not self._create():
            raise _busy(self.model, _described(self._holder()))
        # Another machine may have found the same holder gone, and delete what was just created.
        time.sleep(_SETTLE)
        self.check()

    def check(self) -> None:
        with refusals(f"read the lock of '{self.model}'", self.mlflow.tracking_uri):
            holder = self._holder()
        if holder.get("token") != self.token:
            raise _busy(self.model, _described(holder))

    def renew(self, stop: threading.Event) -> None:
        """Renew the tag `alive` until `stop`, or until another process holds the lock."""
        from mlflow.exceptions import MlflowException

        while not stop.wait(_BEAT):
            with suppress(MlflowException, OSError):  # the next one may get through
                if self._holder().get("token") != self.token:
                    return
                self.mlflow.set_registered_model_tag(self.name, "alive", str(time.time()))

    def release(self) -> None:
        """Delete the lock, if it is still this one; with a server that is down it expires."""
        from mlflow.exceptions import MlflowException

        with suppress(MlflowException, OSError):
            if self._holder().get("token") == self.token:
                self._delete()

    def _create(self) -> bool:
        now = str(time.time())
        tags = {"token": self.token, "user": self.user, "process": this_process()}
        with ignoring("RESOURCE_ALREADY_EXISTS"):
            self.mlflow.create_registered_model(self.name, {**tags, "since": now, "alive": now})
            return True
        return False

    def _holder(self) -> dict[str, str]:
        with ignoring("RESOURCE_DOES_NOT_EXIST"):
            return dict(self.mlflow.get_registered_model(self.name).tags)
        return {}

    def _delete(self) -> None:
        with ignoring("RESOURCE_DOES_NOT_EXIST"):
            self.mlflow.delete_registered_model(self.name)


def _is_alive(holder: Mapping[str, str]) -> bool:
    here = holder["process"].startswith(f"{socket.gethostname()} ")
    silence = time.time() - float(holder["alive"])
    return is_running(holder["process"]) if here else silence < _SILENCE


def _described(holder: Mapping[str, str]) -> str:
    if not holder:
        return "no process any more: it was taken over and released"
    host, _, rest = holder["process"].partition(" ")
    number, since = rest.partition(" ")[0], clock(float(holder["since"]))
    return f"{holder['user']}, process {number} on {host}, since {since}"


def _busy(name: str, holder: str) -> Busy:
    return Busy(
        f"'{name}' is being promoted or rolled back by {holder}; nothing was changed, try again "
        f"when that has ended"
    )


def clock(seconds: float) -> str:
    """Return a time in seconds since 1970 as UTC in ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
