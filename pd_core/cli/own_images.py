"""Description of the user's own images, to look at before any training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pd_core.pipeline.stages.params import DATA

if TYPE_CHECKING:
    from pd_core.data.acquire.overview import Overview

SHEETS = DATA / "contact_sheets"
"""Folder of the contact sheets, one a data set."""


def describe(dataset: str, overview: Overview, images: Path, project: Path = Path()) -> list[str]:
    """Write the contact sheet of a data set; return the lines that describe the data set.

    Args:
        dataset: Name of the data set.
        overview: Of its images.
        images: Folder that their paths are below.
        project: Folder of the project (default: the current one).
    """
    from pd_core.data.acquire.contact_sheet import write_sheet

    file = project / SHEETS / f"{dataset}.jpg"
    limits = write_sheet(overview, images, file)
    return [*overview.lines(), f"  contact sheet: {file}", *(f"  {line}" for line in limits)]
