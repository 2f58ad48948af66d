"""From a reference to the registry to what is served."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from pd_core.bundle import REFERENCE
from pd_core.monitoring import Monitor, Reference
from pd_core.registry import loading
from pd_core.registry.store import BUNDLE, CHAMPION, Version, fetch, find
from pd_core.service.keeper import Keeper
from pd_core.service.served import Served
from pd_core.service.worker import Power, Worker


def keep(store: str, reference: str, power: Power) -> Keeper:
    """Load the version that a reference names, to be followed from then on.

    Args:
        store: what `tracking.open_store` returned.
        reference: a data set, for its champion, or as `greek@challenger`, `greek/3`.
        power: what each version's process may use.

    Raises:
        UnknownName: there is no such model, alias or version.
        PdError: it cannot be had or loaded.
    """
    wanted = partial(find, store, reference, default=CHAMPION)
    loaded = partial(load, store, power=power)
    return Keeper(loaded(wanted()), find=wanted, load=loaded)


def load(store: str, version: Version, power: Power) -> Served:
    """Load a version into a process.

    Raises:
        PdError: it cannot be had or loaded.
    """
    with TemporaryDirectory() as folder:
        model = fetch(store, version, Path(folder))
        worker = Worker(partial(loading.load, model), power)
        reference = model / BUNDLE / REFERENCE
        known = Reference.load(reference) if reference.is_file() else None
    monitor = Monitor(known, worker.facts.names) if known is not None else None
    return Served(version, worker, monitor)
