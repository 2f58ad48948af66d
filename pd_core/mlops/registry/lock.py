"""One promotion of a model at a time: MLflow's alias is a plain overwrite, so the lock is ours.

On one machine it is a file lock, beside the local database or in the folder for temporary files; it
ends with its process, however that ends. A tracking server is shared by machines: there a
registered model of a reserved name is made besides, which succeeds for one only. Its tags name the
holder and are renewed while it lives. A holder that is no longer there is passed over: on the same
machine by its process, on another one when it has not been heard of for a while, by clocks that are
taken to agree.
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

import psutil
from filelock import FileLock, Timeout

from pd_core.core.errors import PdError
from pd_core.mlops import tracking
from pd_core.mlops.registry import refusals

if TYPE_CHECKING:
    from mlflow import MlflowClient

RESERVED = "lock."
"""What the names of locks in the registry begin with; the names of models do not."""

_ENDED = psutil.STATUS_ZOMBIE
_SQLITE = "sqlite:///"
_BEAT = 10.0  # seconds between signs of life
_SILENCE = 180.0  # seconds without one, after which a holder on another machine is taken to be gone
_SETTLE = 1.0  # seconds after which two that took the same lock over see each other


class Busy(PdError):
    """Somebody else holds the lock."""


class Held:
    """The lock, while it is held."""

    def check(self) -> None:
        """Make sure that nobody has taken it over.

        Raises:
            Busy: somebody has; nothing may be changed any more.
        """


@contextmanager
def promotion(store: str, name: str, *, who: str) -> Iterator[Held]:
    """Hold the lock of a model's aliases.

    Args:
        store: what `tracking.open_store` returned.
        name: of the model.
        who: is told to those who are refused meanwhile.

    Raises:
        Busy: somebody else holds it; who and since when.
        PdError: it cannot be taken for another reason.
    """
    with _on_this_machine(store, name, who):
        if store.startswith(_SQLITE):
            yield Held()
        else:
            with _in_the_registry(store, name, who) as held:
                yield held


def _path(store: str, name: str) -> Path:
    if store.startswith(_SQLITE):
        return Path(f"{store.removeprefix(_SQLITE)}-{name}.lock")
    key = hashlib.sha256(f"{store} {name}".encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"promptkd-{os.getuid()}-{key}.lock"


@contextmanager
def _on_this_machine(store: str, name: str, who: str) -> Iterator[None]:
    path = _path(store, name)
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
        path.write_text(f"{who}, process {os.getpid()}, since {_clock(time.time())}")
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


@contextmanager
def _in_the_registry(store: str, name: str, who: str) -> Iterator[Held]:
    with refusals(f"lock '{name}'", store):
        held = _RegistryLock(tracking.client(store), name, who)
        held.take()
    stop = threading.Event()
    heart = threading.Thread(target=held.beat, args=(stop,), daemon=True)
    heart.start()
    try:
        yield held
    finally:
        stop.set()
        heart.join()
        held.release()


@dataclass
class _RegistryLock(Held):
    mlflow: MlflowClient
    model: str
    who: str
    token: str = field(default_factory=lambda: uuid4().hex)

    @property
    def name(self) -> str:
        return f"{RESERVED}{self.model}"

    def take(self) -> None:
        """Make the lock; pass over a holder that is gone.

        Raises:
            Busy: the holder is alive, or somebody else was faster.
        """
        if self._make():
            return
        holder = self._holder()
        if holder and _is_alive(holder):
            raise _busy(self.model, _described(holder))
        self._remove()
        if not self._make():
            raise _busy(self.model, _described(self._holder()))
        # Another machine may have found the same holder gone, and remove what was just made.
        time.sleep(_SETTLE)
        self.check()

    def check(self) -> None:
        with refusals(f"see who holds the lock of '{self.model}'", self.mlflow.tracking_uri):
            holder = self._holder()
        if holder.get("token") != self.token:
            raise _busy(self.model, _described(holder))

    def beat(self, stop: threading.Event) -> None:
        """Renew the sign of life until told to stop, or until the lock is somebody else's."""
        from mlflow.exceptions import MlflowException

        while not stop.wait(_BEAT):
            with suppress(MlflowException, OSError):  # the next one may get through
                if self._holder().get("token") != self.token:
                    return
                self.mlflow.set_registered_model_tag(self.name, "alive", str(time.time()))

    def release(self) -> None:
        """Remove the lock, if it is still this one; a server that is gone keeps it a while."""
        from mlflow.exceptions import MlflowException

        with suppress(MlflowException, OSError):
            if self._holder().get("token") == self.token:
                self._remove()

    def _make(self) -> bool:
        from mlflow.exceptions import MlflowException

        now = time.time()
        tags = {
            "token": self.token,
            "who": self.who,
            "host": socket.gethostname(),
            "process": str(os.getpid()),
            "started": str(psutil.Process().create_time()),
            "since": str(now),
            "alive": str(now),
        }
        try:
            self.mlflow.create_registered_model(self.name, tags=tags)
        except MlflowException as error:
            if error.error_code == "RESOURCE_ALREADY_EXISTS":
                return False
            raise
        return True

    def _holder(self) -> dict[str, str]:
        from mlflow.exceptions import MlflowException

        try:
            return dict(self.mlflow.get_registered_model(self.name).tags)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return {}
            raise

    def _remove(self) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.mlflow.delete_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise


def _is_alive(holder: Mapping[str, str]) -> bool:
    if holder["host"] == socket.gethostname():
        return _runs(int(holder["process"]), float(holder["started"]))
    return time.time() - float(holder["alive"]) < _SILENCE


def _runs(process: int, started: float) -> bool:
    """Whether a process still runs, and is not another one that got its number."""
    try:
        found = psutil.Process(process)
        return bool(abs(found.create_time() - started) < 1 and found.status() != _ENDED)
    except psutil.NoSuchProcess:
        return False


def _described(holder: Mapping[str, str]) -> str:
    if not holder:
        return "nobody any more: it was taken over and given back"
    since = _clock(float(holder["since"]))
    return f"{holder['who']}, process {holder['process']} on {holder['host']}, since {since}"


def _busy(name: str, holder: str) -> Busy:
    return Busy(
        f"'{name}' is being promoted or rolled back by {holder}; nothing was changed, try again "
        f"when that has ended"
    )


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
