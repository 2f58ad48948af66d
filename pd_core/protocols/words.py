"""What the report and its figure call protocols and data sets."""

from __future__ import annotations

from collections.abc import Mapping

from pd_core.protocols.results import (
    ALL_CLASSES,
    BASE_TO_NOVEL,
    CROSS_DATASET,
    DOMAIN_GENERALISATION,
    FROM_SOURCE,
)
from pd_core.results import Summary

HEADINGS = {
    BASE_TO_NOVEL: "Base to novel",
    CROSS_DATASET: "Cross-data-set",
    DOMAIN_GENERALISATION: "Domain generalisation",
    ALL_CLASSES: "All classes",
}

NUMBERS = {
    BASE_TO_NOVEL: "Base classes / novel classes / harmonic mean of the two; differences and "
    "outliers are of the harmonic mean.",
    **dict.fromkeys(
        (CROSS_DATASET, DOMAIN_GENERALISATION, ALL_CLASSES), "Accuracy over all classes."
    ),
}


def title(name: str, titles: Mapping[str, str] | None) -> str:
    """Return a data set's readable name, or its own where there is none."""
    return (titles or {}).get(name, name)


def heading(summary: Summary, protocol: str, titles: Mapping[str, str] | None) -> str:
    """Return a protocol's heading, with the source if the teacher is another data set's."""
    if protocol not in FROM_SOURCE:
        return HEADINGS[protocol]
    return f"{HEADINGS[protocol]}, teacher from {title(summary['source'], titles)}"
