"""Commands for the model registry."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from pd_core.cli.common import (
    AsJson,
    note,
    open_store,
    print_json,
    print_table,
    register,
    say,
    settings_of,
    version_of,
)
from pd_core.cli.export import table as export_table
from pd_core.core.errors import BadParams, PdError, missing
from pd_core.core.scores import LEGEND, sign
from pd_core.pipeline.provenance import git
from pd_core.pipeline.settings import compute_with, load_settings
from pd_core.pipeline.stages.params import DATA, PARAMS, load_params

if TYPE_CHECKING:
    from pd_core.mlops.registry import Version
    from pd_core.mlops.registry.gate import Exam
    from pd_core.mlops.registry.promotion import Decision, Entry

app = typer.Typer(help="Manage registered students and their champions.")

_ACCURACY = ("student/hm", "student/all", "student.hm", "accuracy")  # with a dot: older versions

Name = Annotated[str, typer.Argument(help="Data set, or promptkd-<data set>.")]
Reference = Annotated[
    str, typer.Argument(help="Data set, data set/version or data set@alias (default: newest).")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the outcome, change nothing.")]


@app.command("register")
def register_(
    name: Annotated[str | None, typer.Argument(help="Data set (default: all).")] = None,
    dry_run: DryRun = False,
) -> None:
    """Register the evaluated students in DVC's workspace, each once."""
    params = load_params(PARAMS)
    settings = settings_of(params, [name] if name else params.datasets)
    evaluated = [
        setting
        for setting in settings.values()
        if (setting.job.evaluation / "metrics.json").is_file()
    ]
    if not evaluated:
        raise missing("evaluation", DATA / "evaluate", "run `dvc repro`, or `dvc pull`")
    for setting in evaluated:
        model = f"promptkd-{setting.job.student.name}"
        if dry_run:
            say(f"{model}  would be registered, if it is not")
            continue
        version = register(setting)
        say(f"{model}  version {version.version}, {'new' if version.created else 'there already'}")
    if len(evaluated) < len(settings):
        note(f"{len(settings) - len(evaluated)} data sets have no evaluated student here")


@app.command("list")
def list_(
    name: Annotated[str | None, typer.Argument(help="Data set to list the versions of.")] = None,
    as_json: AsJson = False,
) -> None:
    """List all models, or the versions of one."""
    store = open_store()
    from pd_core.mlops import registry

    names = registry.models(store) if name is None else [registry.model_name(name)]
    models = {name: registry.versions(store, name) for name in names}
    if as_json:
        every = [version for versions in models.values() for version in versions]
        print_json([_described(version) for version in every])
    elif not models:
        say("no student is registered; run `promptkd registry register`")
    else:
        print_table(_models_table(models) if name is None else _versions_table(models))


@app.command()
def show(reference: Reference, as_json: AsJson = False) -> None:
    """Show the tags, the lineage and the last decision of a version."""
    store = open_store()
    from pd_core.mlops import registry
    from pd_core.mlops.registry import promotion

    version = registry.find(store, reference)
    if as_json:
        print_json(_described(version))
        return
    table = Table(show_header=False, box=None)
    table.add_row("version", f"{version.name}/{version.number}")
    table.add_row("aliases", ", ".join(version.aliases))
    table.add_row("created", _clock(version.created))
    for key, value in sorted(version.tags.items()):
        if not key.startswith("decision."):  # the journal, see `history`
            table.add_row(key, value)
    lineage = registry.lineage(store, version)
    table.add_row("git_commit", lineage.git_commit)
    for path, digest in lineage.outs.items():
        table.add_row(path, digest)
    history = promotion.history(store, version.name)
    decisions = [entry for entry in history if entry.version == version.number]
    for entry in decisions[:1]:
        for name, finding in entry.findings.items():
            table.add_row(f"gate.{name}", finding)
    print_table(table)


@app.command()
def quantize(
    reference: Annotated[
        str,
        typer.Argument(help="Data set, data set/version or data set@alias (default: champion)."),
    ],
    dry_run: DryRun = False,
) -> None:
    """Register an int8 version of a version, unless it is worse than that."""
    params = load_params(PARAMS)
    compute_with(params.run.threads)
    store = open_store()
    from pd_core.mlops.registry import quantize

    version = version_of(store, reference)
    result = quantize.quantize(
        store,
        version,
        _exam(version.dataset, accept_unknown=False),
        experiment=load_settings().mlflow_experiment,
        dry_run=dry_run,
    )
    print_table(export_table(result.accuracy, result.cost, params.run.threads))
    made = result.version
    if made is None:
        say(f"{version.name}  an int8 version of version {version.number} would be registered")
    else:
        state = "new" if made.created else "there already"
        say(f"{made.name}  version {made.version}, int8 of version {version.number}, {state}")


@app.command()
def promote(
    reference: Annotated[
        str | None,
        typer.Argument(help="Data set, or data set/version (default: newest of the only model)."),
    ] = None,
    dry_run: DryRun = False,
    accept_unknown: Annotated[
        bool, typer.Option("--accept-unknown", help="Accept an accuracy that cannot be measured.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a version the champion, if it passes the gate; exit status 2 if it does not."""
    params = load_params(PARAMS)
    compute_with(params.run.threads)
    store = open_store()
    from pd_core.mlops import registry
    from pd_core.mlops.registry import gate, promotion

    version = registry.find(store, reference or _only_model(registry.models(store)))
    examine = partial(
        gate.examine, store, exam=_exam(version.dataset, accept_unknown), on_note=note
    )
    reference = f"{version.name}/{version.number}"
    decision = promotion.promote(store, reference, examine, user=_user(), dry_run=dry_run)
    conclusion = _conclusion(decision, dry_run=dry_run)
    if as_json:
        print_json(_as_dict(decision, conclusion, dry_run=dry_run))
    else:
        for check in decision.checks:
            say(f"{'pass' if check.passed else 'FAIL'}  {check.name:<9} {check.finding}")
    if not decision.accepted:
        raise PdError(conclusion)
    if not as_json:
        say(conclusion)


@app.command()
def rollback(name: Name, dry_run: DryRun = False) -> None:
    """Make the previous champion the champion again."""
    store = open_store()
    from pd_core.mlops.registry import promotion

    decision = promotion.rollback(store, name, user=_user(), dry_run=dry_run)
    would = "would be" if dry_run else "is"
    say(
        f"version {decision.version.number} of '{decision.version.name}' {would} champion again, "
        f"after version {_number(decision.champion)}"
    )


@app.command()
def history(name: Name, as_json: AsJson = False) -> None:
    """List the decisions about a model's versions, the newest first."""
    store = open_store()
    from pd_core.mlops.registry import promotion

    entries = promotion.history(store, name)
    if as_json:
        print_json([asdict(entry) for entry in entries])
    elif entries:
        print_table(_history_table(entries))
    else:
        say("nothing was decided yet")


def _exam(dataset: str, accept_unknown: bool) -> Exam:
    """Return the data and limits that a data set's versions are examined with."""
    from pd_core.mlops.registry.gate import Exam

    params, settings = load_params(PARAMS), load_settings()
    student = params.for_dataset(dataset).student
    return Exam(
        project=Path.cwd(),
        profile=params.profile.name,
        prepared=DATA / "prepare" / dataset,
        data_root=settings.data_root or Path(params.profile.root) / DATA / "raw",
        model=student.model,
        weights=student.weights,
        accept_unknown=accept_unknown,
        **params.promotion.model_dump(),
    )


def _only_model(names: Sequence[str]) -> str:
    if len(names) != 1:
        raise BadParams(f"give a model: {', '.join(names) or 'none is registered'}")
    return names[0]


def _user() -> str:
    """Return user and machine, and the name in git."""
    from pd_core.mlops.tracking.nesting import user_name

    values = [git(Path(), "config", key) or b"" for key in ("user.name", "user.email")]
    name = " ".join(filter(None, (value.decode().strip() for value in values)))
    return f"{user_name()}@{socket.gethostname()} ({name or 'no name in git'})"


def _conclusion(decision: Decision, *, dry_run: bool) -> str:
    """Return the decision in one line."""
    version = decision.version
    name = f"version {version.number} of '{version.name}'"
    if not decision.checks:
        return f"{name} is the champion already; nothing to do"
    if reasons := decision.reasons:
        failed = f"{len(reasons)} of {len(decision.checks)} checks failed"
        return f"{name} is refused, {failed}; {reasons[0]}{_set_by_hand(decision)}"
    would = "would become" if dry_run else "is"
    return f"{name} {would} champion, after {_number(decision.champion)}"


def _set_by_hand(decision: Decision) -> str:
    """Return what holds after the refusal of a champion that was set by hand."""
    if "champion" not in decision.version.aliases:
        return ""
    restore = f"`promptkd registry rollback {decision.version.dataset}` restores the one before"
    return f"; it was set by hand and stays champion{f', {restore}' if decision.champion else ''}"


def _as_dict(decision: Decision, conclusion: str, *, dry_run: bool) -> dict[str, Any]:
    """Return a decision for JSON."""
    version, champion = decision.version, decision.champion
    return {
        "name": version.name,
        "version": version.number,
        "uri": version.uri,
        "champion_before": None if champion is None else champion.number,
        "dry_run": dry_run,
        "accepted": decision.accepted,
        "conclusion": conclusion,
        "checks": [asdict(check) for check in decision.checks],
        "reasons": decision.reasons,
    }


def _number(version: Version | None) -> str:
    return "none" if version is None else str(version.number)


def _described(version: Version) -> dict[str, Any]:
    return {**asdict(version), "uri": version.uri}


def _models_table(models: Mapping[str, Sequence[Version]]) -> Table:
    table = Table("model", "versions", "champion", "challenger")
    for name, versions in models.items():
        holders = {alias: str(version.number) for version in versions for alias in version.aliases}
        aliases = (holders.get(alias, "") for alias in ("champion", "challenger"))
        table.add_row(name, str(len(versions)), *aliases)
    return table


def _versions_table(models: Mapping[str, Sequence[Version]]) -> Table:
    table = Table("version", "alias", "kind", "student's hm", "created", "decision")
    for version in (version for versions in models.values() for version in versions):
        tags, worse = version.tags, "caution" in version.tags
        if worse:
            table.caption = LEGEND
        table.add_row(
            str(version.number),
            ", ".join(version.aliases),
            tags.get("kind", ""),
            next((tags[key] for key in _ACCURACY if key in tags), "") + sign(worse),
            _clock(version.created),
            tags.get("decision", ""),
        )
    return table


def _history_table(entries: Sequence[Entry]) -> Table:
    table = Table("when", "decision", "version", "before", "who", "why not")
    table.columns[0].no_wrap = True
    for entry in entries:
        failed = [name for name, text in entry.findings.items() if text.startswith("fail")]
        table.add_row(
            entry.at,
            str(entry.action) if entry.state == "done" else f"{entry.action} ({entry.state})",
            str(entry.version),
            "none" if entry.champion is None else str(entry.champion),
            entry.by.partition(" ")[0],
            ", ".join(failed),
        )
    return table


def _clock(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
