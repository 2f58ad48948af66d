"""Flow that reruns changed data sets only: `python -m flows.refresh`, nightly by a schedule.

DVC finds the stages that are not up to date, by parameters, code and fingerprints. Images that
differ from their fingerprint are refused until they have been checked and a new fingerprint has
been committed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import State, flow
from prefect.artifacts import create_table_artifact
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed, Failed

from flows import artifacts, pipeline
from flows.benchmark import benchmark
from flows.commands import check_server, command
from flows.slots import recorded
from pd_core.core.errors import BadData, MissingFile, PdError
from pd_core.data.catalog import fingerprint
from pd_core.data.catalog.catalogue import Layout
from pd_core.data.catalog.prepare import spec_of
from pd_core.data.catalog.readers import sources
from pd_core.pipeline.code_hash import CODE, is_current
from pd_core.pipeline.settings import load_settings
from pd_core.pipeline.stages.params import DATA, PARAMS, Params, load_params

_MOST_REASONS = 5  # of a data set, in the table


@flow(name="refresh")
def refresh(profile_dir: Path = Path()) -> State[Any]:
    """Run the stages that are not up to date, and the report if there were any.

    Args:
        profile_dir: folder of the profile's `dvc.yaml`, as seen from the repository.

    Returns:
        Completed; or failed if a stage failed, or images differ from their fingerprint. The
        artifact lists the changes of each data set.
    """
    try:
        changes, refused = find_changes(profile_dir)
        rows = [{"data set": name, "changed": why} for name, why in {**changes, **refused}.items()]
        create_table_artifact(
            table=rows,
            key=artifacts.key_of("changes", load_params(profile_dir / PARAMS).profile.name),
            description="Changes since the last computation.",
        )
        wanted = [name for name in changes if name not in refused]
        failed = list(refused.values())
        if wanted:
            with recorded():
                state: State[Any] = benchmark(wanted, profile_dir, report=True, return_state=True)
            if not state.is_completed():
                failed.append(str(state.message))
    except PdError as error:
        return Failed(message=str(error))
    if failed:
        return Failed(message="; ".join(failed))
    return Completed(message=f"{len(wanted)} data sets had changed, all is up to date")


def find_changes(profile_dir: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Find changed data sets.

    Returns:
        The reasons by data set: of those with a stage that is not up to date, and of those whose
        images are present and differ from their fingerprint.
    """
    graph = pipeline.read_graph(profile_dir)
    names = pipeline.choose(graph)
    # The other stages depend on its hashes. DVC fails if one of them is running and reads them.
    if CODE in graph and not is_current(profile_dir / DATA / CODE):
        pipeline.ask_dvc(profile_dir, "repro", "--single-item", CODE)
    params = load_params(profile_dir / PARAMS)
    changes = changed(json.loads(pipeline.ask_dvc(profile_dir, "status", "--json")), names)
    refused = {name: why for name in names if (why := _other_images(name, params, profile_dir))}
    return changes, refused


def changed(status: Mapping[str, Any], datasets: Sequence[str]) -> dict[str, str]:
    """Return the reasons, by data set, of the stages in the JSON of `dvc status`."""
    reasons: dict[str, dict[str, None]] = {}
    for stage, details in status.items():
        dataset = stage.partition("@")[2]
        if dataset in datasets:
            reasons.setdefault(dataset, {}).update(dict.fromkeys(_reasons(details)))
    return {name: _shortened(list(words)) for name, words in reasons.items()}


@command
def main(arguments: Sequence[str] | None) -> State[Any]:
    """Run the flow from the command line."""
    parser = argparse.ArgumentParser(prog="python -m flows.refresh", description=__doc__)
    parser.add_argument(
        "--profile-dir", type=Path, default=Path(), help="directory with dvc.yaml (default: .)"
    )
    profile_dir = parser.parse_args(arguments).profile_dir
    check_server(PREFECT_API_URL.value())
    load_params(profile_dir / PARAMS)  # bad input is refused before Prefect starts
    return refresh(profile_dir, return_state=True)


def _reasons(details: Sequence[Any]) -> list[str]:
    """Flatten DVC's list for one stage to `<path or key> <state>`."""
    reasons = []
    for detail in details:
        if isinstance(detail, str):  # "changed command", for example
            reasons.append(detail)
            continue
        for paths in detail.values():
            for path, value in paths.items():
                keys = value.items() if isinstance(value, dict) else [(path, value)]
                reasons += [f"{key} {state}" for key, state in keys]
    return reasons


def _shortened(reasons: Sequence[str]) -> str:
    left = len(reasons) - _MOST_REASONS
    shown = ", ".join(reasons[:_MOST_REASONS])
    return f"{shown} and {left} more" if left > 0 else shown


def _other_images(name: str, params: Params, profile_dir: Path) -> str:
    """Describe how a data set's images differ from its fingerprint; empty if equal or absent."""
    root = profile_dir / params.profile.root
    spec = spec_of(name, params.for_dataset(name).prepare.own)
    file = fingerprint.path_of(name, root)
    if spec.layout is Layout.EMBEDDED or not file.is_file():
        return ""
    images = load_settings().data_root or root / DATA / "raw"
    try:
        recorded = fingerprint.read(file, name)
        fingerprint.check(recorded, sources(spec, images), images / spec.folder, name=name)
    except MissingFile:
        return ""
    except BadData as error:
        return str(error)
    return ""


if __name__ == "__main__":
    sys.exit(main())
