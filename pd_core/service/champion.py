"""From a reference to the registry to what is served."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from pd_core.registry import loading
from pd_core.registry.store import CHAMPION, Version, fetch, find
from pd_core.service.keeper import Keeper
from pd_core.service.served import Served, Student

_WORTH_SECONDS = 0.02  # for one picture: below it, threads cost more than they give


def keep(store: str, reference: str) -> Keeper:
    """Load the version that a reference names, to be followed from then on.

    Args:
        store: what `tracking.open_store` returned.
        reference: a data set, for its champion, or as `greek@challenger`, `greek/3`.

    Raises:
        UnknownName: there is no such model, alias or version.
        PdError: it cannot be had or loaded.
    """
    wanted = partial(find, store, reference, default=CHAMPION)
    return Keeper(load(store, wanted()), find=wanted, load=partial(load, store))


def load(store: str, version: Version) -> Served:
    """Load a version.

    Raises:
        PdError: it cannot be had or loaded.
    """
    with TemporaryDirectory() as folder:
        model = fetch(store, version, Path(folder))
        return Served(version, loading.load(model))


def warm_up(student: Student, threads: int, cores: int) -> None:
    """Choose the number of threads that the calling one computes with, and use the student once.

    Args:
        student: to be used in this thread.
        threads: 0 for one, or for all cores if a picture is much work.
        cores: of the machine.
    """
    import torch

    picture = np.zeros((1, student.image_size, student.image_size, 3), np.uint8)
    torch.set_num_threads(threads or 1)
    student.answers(picture)
    begun = time.perf_counter()
    student.answers(picture)
    if not threads and time.perf_counter() - begun > _WORTH_SECONDS:
        torch.set_num_threads(cores)
