"""Rehearsal of a run: which data sets are measured, and the estimates of all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pd_core.core.config import ClipConfig
from pd_core.core.hooks import OnNote
from pd_core.data.catalog.catalogue import Layout
from pd_core.data.catalog.prepare import spec_of
from pd_core.data.loading.splits import Protocol
from pd_core.pipeline.protocols import SOURCE, ProtocolsParams
from pd_core.pipeline.stages import jobs
from pd_core.pipeline.stages.params import DatasetParams, Params
from pd_core.rehearsal.estimate import Estimate
from pd_core.rehearsal.forecast import Rehearsed, cost_key, forecast
from pd_core.rehearsal.measure import FEW, Place, measure
from pd_core.rehearsal.workload import Sizes, published_sizes, sizes_of

_MOST_CLASSES = 250
"""Classes of the largest data set that is measured in few steps."""

_WITHOUT_TEXTS = ("student", "evaluate")
"""Stages that encode texts at most at their start."""


@dataclass(frozen=True)
class Item:
    """Stages of a data set in a run.

    Attributes:
        params: of the data set.
        stages: in order; the first one is `prepare`.
        name: shown in the table.
        repeats: number of seeds.
    """

    params: DatasetParams
    stages: tuple[str, ...]
    name: str
    repeats: int = 1


def profile_items(params: Params, names: Iterable[str]) -> list[Item]:
    """Return the stages of data sets of a profile.

    Raises:
        UnknownName: the profile has no such data set.
    """
    stages = ("prepare", "teacher", "class_vectors", "student", "evaluate")
    items = []
    for name in names:
        own = params.for_dataset(name)
        baseline = () if own.tuned_student is None else ("tuned_student",)
        items.append(Item(own, (*stages, *baseline), name))
    return items


def protocol_items(rules: ProtocolsParams, profile: Params) -> list[Item]:
    """Return the stages of all protocols, over all seeds; a source's teacher is tuned once."""
    items = []
    for protocol in (each for each in Protocol if rules.of(each)):
        stages = ["prepare", "class_vectors", "student", "evaluate"]
        if not protocol.has_source:
            stages.insert(1, "teacher")
        for name in rules.of(protocol):
            own = rules.for_dataset(profile, protocol, name)
            items.append(Item(own, tuple(stages), f"{protocol}/{name}", len(rules.seeds)))
    sources = [each for each in Protocol if each.has_source and rules.of(each)]
    for protocol in sources[:1]:
        name = rules.source.dataset
        own = rules.for_dataset(profile, protocol, name)
        items.append(Item(own, ("prepare", "teacher"), f"{SOURCE}/{name}", len(rules.seeds)))
    return items


def rehearse(items: Sequence[Item], place: Place, on_note: OnNote) -> list[Estimate]:
    """Measure stages of some data sets, and estimate those of all.

    Args:
        items: the run.
        place: where and how it is measured.
        on_note: called with a line before each measurement.

    Raises:
        FailedRun: a stage fails.
        PdError: a data set cannot be prepared.
    """
    items = [_at_home(item) for item in items]
    rehearsed = [
        measure(place, item.params, item.stages, on_note)
        for item in representatives(items, few=place.steps < FEW)
    ]
    return [estimate_of(item, place, rehearsed) for item in items]


def estimate_of(item: Item, place: Place, rehearsed: Sequence[Rehearsed]) -> Estimate:
    """Estimate the stages of an item from data sets that were measured."""
    return forecast(
        item.params, _sizes(item, place, rehearsed), item.stages, rehearsed,
        name=item.name, repeats=item.repeats,
    )  # fmt: skip


def representatives(items: Sequence[Item], *, few: bool) -> list[Item]:
    """Return what to measure: of each stage and kind of models the smallest and largest data set.

    Args:
        items: of the run, at least one with all stages; those without are not measured.
        few: measure less, for large models: leave out data sets of many classes where there are
            smaller ones, and measure stages whose steps encode no texts on the smallest only.
    """
    groups: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for item in (item for item in items if {"teacher", "evaluate"} <= {*item.stages}):
        for stage in item.stages:
            groups[stage, cost_key(stage, item.params)].append(item)
    wanted: dict[str, set[str]] = defaultdict(set)
    for (stage, _), group in groups.items():
        ordered = sorted(group, key=_classes)
        within = [item for item in ordered if _classes(item) <= _MOST_CLASSES] if few else ordered
        ends = [(within or ordered)[0], (within or ordered[:1])[-1]]
        unknown = [item for item in group if _classes(item) == 0]  # of own images
        for item in [*(ends[:1] if few and stage in _WITHOUT_TEXTS else ends), *unknown]:
            wanted[item.params.name].add(stage)
    first = {item.params.name: item for item in reversed(items)}
    return [replace(first[name], stages=_needed(first[name], wanted[name])) for name in wanted]


def _needed(item: Item, wanted: Iterable[str]) -> tuple[str, ...]:
    """Return stages and those whose outputs they read."""
    chain = [stage for stage in item.stages if stage != "tuned_student"]
    last = max(chain.index(stage) for stage in ("prepare", *wanted) if stage in chain)
    return tuple(s for s in item.stages if s in chain[: last + 1] or s in wanted)


def _classes(item: Item) -> int:
    return spec_of(item.params.name, item.params.prepare.own).num_classes


def _sizes(item: Item, place: Place, rehearsed: Iterable[Rehearsed]) -> Sizes:
    """Return the sizes of a data set: measured, published, or those of its embedded images."""
    params = item.params
    for each in rehearsed:
        is_same = each.params.name == params.name and each.params.prepare == params.prepare
        if is_same and params.name not in place.copies:
            return each.sizes
    spec = spec_of(params.name, params.prepare.own)
    if spec.layout is not Layout.EMBEDDED:
        return published_sizes(spec, params.prepare, params.evaluate.split)
    job = place.job(params)
    jobs.prepare(job)
    return sizes_of(job.prepared, params.evaluate.split)


def _at_home(item: Item) -> Item:
    """Return an item whose files have absolute paths, since it is measured in another folder."""
    params = item.params
    blocks = {
        stage: _absolute(block)
        for stage in ("teacher", "student", "tuned_student")
        if (block := getattr(params, stage)) is not None
    }
    return Item(params.model_copy(update=blocks), item.stages, item.name, item.repeats)


def _absolute(clip: ClipConfig) -> ClipConfig:
    if clip.weights is None or not Path(clip.weights).is_file():
        return clip
    return clip.model_copy(update={"weights": str(Path(clip.weights).absolute())})
