"""What the report and its figure call protocols and data sets."""

from __future__ import annotations

from collections.abc import Mapping

from pd_core.data.splits import Protocol
from pd_core.results import Summary

HEADINGS = {
    Protocol.BASE_TO_NOVEL: "Base to novel",
    Protocol.CROSS_DATASET: "Cross-data-set",
    Protocol.DOMAIN_GENERALISATION: "Domain generalisation",
    Protocol.ALL_CLASSES: "All classes",
}

_HALVES = "Base classes / novel classes / harmonic mean; differences and outliers are of the last."
_WHOLE = "Accuracy over all classes."


def numbers(protocol: Protocol) -> str:
    """Say what the numbers of a protocol's table are."""
    return _HALVES if protocol is Protocol.BASE_TO_NOVEL else _WHOLE


def title(name: str, titles: Mapping[str, str] | None) -> str:
    """Return a data set's readable name, or its own where there is none."""
    return (titles or {}).get(name, name)


def heading(summary: Summary, protocol: Protocol, titles: Mapping[str, str] | None) -> str:
    """Return a protocol's heading, with the source if the teacher is another data set's."""
    return ", ".join([HEADINGS[protocol], *taught_by(summary, protocol, titles)])


def taught_by(summary: Summary, protocol: Protocol, titles: Mapping[str, str] | None) -> list[str]:
    """Say whose teacher it is, if it is another data set's: one phrase, or none."""
    source = title(summary["source"], titles) if protocol.has_source else None
    return [] if source is None else [f"teacher from {source}"]
