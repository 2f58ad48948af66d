"""Processes that decode batches of images."""

import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

_Result = TypeVar("_Result", covariant=True)
Request = list[tuple[int, int]]  # (epoch, position in the list) of each image of a batch


class Workers(Generic[_Result]):
    """Persistent processes that fetch the items of a data set, in order."""

    def __init__(self, dataset: Dataset[_Result], count: int) -> None:
        """Set up processes, which the first request starts.

        Args:
            dataset: its `__getitems__` returns the result of a request, and never raises.
            count: number of processes.
        """
        self._requests = _Requests()
        with _any_number_of_workers():
            self._loader = DataLoader(
                dataset,
                batch_sampler=self._requests,
                num_workers=count,
                collate_fn=_unchanged,
                persistent_workers=True,
                worker_init_fn=_ignore_foreign_sigterm,
                generator=torch.Generator(),  # otherwise each epoch draws from the global one
            )

    def fetch(self, requests: Iterable[Request]) -> Iterator[_Result]:
        """Return the results of requests, which are read as workers become free."""
        self._requests.current = requests
        with _any_number_of_workers():
            return iter(self._loader)


class _Requests:
    """The requests of the present epoch, which persistent workers read at its start."""

    current: Iterable[Request] = ()

    def __iter__(self) -> Iterator[Request]:
        return iter(self.current)


@contextmanager
def _any_number_of_workers() -> Iterator[None]:
    """Silence torch's warning about more workers than cores."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")
        yield


def _ignore_foreign_sigterm(_worker: int) -> None:
    """Ignore a SIGTERM unless the parent sent it, which may have its state to save first."""
    if sys.platform == "linux":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_by_parents_sigterm, daemon=True).start()


def _end_by_parents_sigterm() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _unchanged(batch: Any) -> Any:
    return batch
