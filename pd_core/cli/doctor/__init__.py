"""`promptkd doctor`: is everything there that the profile needs, and does it work."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Annotated

import typer
from pydantic import SecretStr

from pd_core.cli.doctor import local, servers
from pd_core.cli.doctor.local import Check, Finding, Mark, examine, ok
from pd_core.core.config import ClipConfig
from pd_core.core.errors import PdError
from pd_core.data.catalog.catalogue import DatasetSpec, dataset_spec, own_spec
from pd_core.pipeline.redaction import variables
from pd_core.pipeline.settings import Settings, load_settings
from pd_core.pipeline.stages.params import DATA, PARAMS, DatasetParams, Params, load_params

_SHIPPED = Path(__file__).parents[2] / "models" / "weights"
_FILES = (".pt", ".pth", ".bin", ".safetensors")


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="JSON in place of text.")] = False,
) -> None:
    """Check Python, git, versions, device, data, weights, DVC, MLflow, Prefect, S3 and disks.

    Every line says what was found and, if it is wrong, how to mend it; secrets are masked. Exit
    status 1 if something is wrong.
    """
    found = []
    for subject, check in _checks(load_params(PARAMS), load_settings()):
        for finding in examine(subject, check):
            found.append(finding)
            if not as_json:
                typer.echo(_line(finding))
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in found], indent=2))
    if any(finding.mark is Mark.WRONG for finding in found):
        raise typer.Exit(1)


def _line(finding: Finding) -> str:
    remedy = f"; {finding.remedy}" if finding.remedy else ""
    return " ".join(f"{finding.mark:<8}{finding.subject}: {finding.found}{remedy}".split("\n"))


def _checks(params: Params, settings: Settings) -> Iterator[tuple[str, Check]]:
    root = Path(params.profile.root)
    data_root = settings.data_root or root / DATA / "raw"
    blocks = [params.for_dataset(name) for name in params.datasets]
    read_dvc = cache(partial(servers.read_dvc, Path()))  # it takes seconds

    def space() -> Iterable[Finding]:
        places = {"stages": DATA, "checkpoints": DATA / "checkpoints", "pictures": data_root}
        with suppress(PdError):  # the check of DVC says so
            places["DVC's cache"] = read_dvc().cache
        return local.space(places)

    yield "Python", local.python
    yield "Python of stages", local.python_of_stages
    yield "git", local.repository
    yield "packages", partial(local.packages, root / "constraints.txt")
    yield "settings", local.settings
    yield "device", partial(local.device, settings.device or params.run.device)
    yield "data", partial(local.data, [_spec(one) for one in blocks], data_root, root)
    yield "weights", partial(local.weights, [file for one in blocks for file in _weights(one)])
    shared = None if settings.dvc_remote is None else _access(settings, settings.dvc_remote)
    yield "DVC", lambda: servers.dvc(read_dvc(), shared)
    yield "mirror", partial(_mirror, settings)
    yield "MLflow", partial(_mlflow, root, settings.mlflow_tracking_uri)
    prefect = settings.prefect_api_url or variables().get("PREFECT_API_URL")
    yield "Prefect", partial(servers.prefect, prefect)
    yield "disk space", space


def _spec(params: DatasetParams) -> DatasetSpec:
    own = params.prepare.own
    return own_spec(params.name, own) if own else dataset_spec(params.name)


def _weights(params: DatasetParams) -> Iterator[Path]:
    """Yield the files that a data set's models are made of; tags of open_clip are none."""
    models: tuple[ClipConfig | None, ...] = (params.teacher, params.student, params.tuned_student)
    for model in filter(None, models):
        shipped = _SHIPPED / f"{model.model}.safetensors"
        given = Path(model.weights) if model.weights is not None else shipped
        if given.exists() or (model.weights is not None and given.suffix in _FILES):
            yield given
    further = (teacher.weights for teacher in params.student.further_teachers)
    yield from (Path(given) for given in further if given and Path(given).suffix in _FILES)
    if params.teacher.original is not None:
        yield Path(params.teacher.original.path)


def _mirror(settings: Settings) -> Finding:
    if settings.mirror is None:
        return ok("mirror", "none set: data and weights come from their origins")
    return servers.s3("mirror", _access(settings, settings.mirror))


def _mlflow(root: Path, uri: str | None) -> Finding:
    password = os.environ.get("MLFLOW_TRACKING_PASSWORD")
    return servers.mlflow(
        root,
        uri,
        user=os.environ.get("MLFLOW_TRACKING_USERNAME"),
        password=SecretStr(password) if password else None,
    )


def _access(settings: Settings, location: str) -> servers.Access:
    return servers.Access(
        location,
        endpoint=settings.s3_endpoint_url,
        key_id=settings.s3_access_key_id,
        secret=settings.s3_secret_access_key,
    )
