"""The protocols' files: who is taught what, which numbers are the paper's, what runs again when."""

import re
from pathlib import Path
from typing import Any

import pytest
from facts import facts
from ruamel.yaml import YAML
from typer.testing import CliRunner

from pd_core.cli import verbs
from pd_core.core.errors import BadParams, PdError, UnknownName
from pd_core.data.catalog.embedded import VARIANTS
from pd_core.data.loading.splits import Protocol
from pd_core.pipeline import protocols
from pd_core.pipeline.protocols import (
    EVALUATIONS,
    FOLDER,
    RESULTS,
    SOURCE,
    ProtocolsParams,
    load_protocols,
)
from pd_core.pipeline.stages.jobs import Job, inputs, output
from pd_core.pipeline.stages.params import DATA, DatasetParams, Params

ROOT = Path(__file__).parents[2]
FILE = ROOT / FOLDER / "params.yaml"
PIPELINE: dict[str, Any] = YAML(typ="safe").load(ROOT / FOLDER / "dvc.yaml")["stages"]
TARGETS = {
    Protocol.BASE_TO_NOVEL: "embedded_greek",
    Protocol.CROSS_DATASET: "embedded_greek",
    Protocol.DOMAIN_GENERALISATION: "embedded_symbols_neon",
    Protocol.ALL_CLASSES: "embedded_greek",
}
Loaded = tuple[ProtocolsParams, Params]


@pytest.fixture(scope="module")
def shipped() -> Loaded:
    return load_protocols(FILE.parent)


@pytest.fixture(scope="module")
def paper() -> Loaded:
    return load_protocols(ROOT / "paper" / FOLDER)


def params_of(loaded: Loaded, protocol: Protocol, name: str) -> DatasetParams:
    params, profile = loaded
    return params.for_dataset(profile, protocol, name)


def job_of(loaded: Loaded, protocol: Protocol, name: str, seed: int = 2) -> Job:
    return protocols.job(
        loaded[0], protocol, params_of(loaded, protocol, name),
        seed=seed, device="cpu", data_root=DATA / "raw", fingerprint=None, features=None,
    )  # fmt: skip


def test_all_four_protocols_run_on_the_embedded_benchmark_with_three_seeds(shipped: Loaded) -> None:
    params, profile = shipped
    assert params.seeds == (1, 2, 3)
    assert set(params.datasets) == set(Protocol)
    everything = tuple(profile.datasets)
    assert params.of(Protocol.BASE_TO_NOVEL) == params.of(Protocol.ALL_CLASSES) == everything
    others = tuple(name for name in everything if name != params.source.dataset)
    assert params.of(Protocol.CROSS_DATASET) == others
    assert params.of(Protocol.DOMAIN_GENERALISATION) == tuple(VARIANTS)
    assert {row.source for row in VARIANTS.values()} == {params.source.dataset}


def test_the_papers_profile_has_the_papers_three_protocols_and_targets(paper: Loaded) -> None:
    params, profile = paper
    assert params.seeds == (1, 2, 3)
    assert params.of(Protocol.BASE_TO_NOVEL) == tuple(profile.datasets)
    assert params.source.dataset == "imagenet"
    assert params.of(Protocol.ALL_CLASSES) == ()
    targets = set(facts("paper")["cross_dataset_target"]["PromptKD"]) - {"average"}
    variants = set(facts("paper")["domain_generalization"]["PromptKD"]) - {"average"}
    assert set(params.of(Protocol.CROSS_DATASET)) == targets
    assert set(params.of(Protocol.DOMAIN_GENERALISATION)) == variants


def test_the_papers_source_is_tuned_with_the_papers_numbers_for_it(paper: Loaded) -> None:
    params, profile = paper
    source = params_of(paper, Protocol.CROSS_DATASET, "imagenet").teacher
    own = params_of(paper, Protocol.BASE_TO_NOVEL, "imagenet").teacher
    assert own == profile.for_dataset("imagenet").teacher
    papers = facts("paper")["hyperparameters"]["teacher"]
    shown = (source.lr, source.text_depth, source.image_depth, source.gpa_mean, source.gpa_std)
    assert shown == tuple(
        papers[f"{key}_cross_dataset"] for key in ("lr", "depth", "depth", "gpa_mean", "gpa_std")
    )
    changed = {"lr", "text_depth", "image_depth", "gpa_mean", "gpa_std"}
    assert source.model_dump(exclude=changed) == own.model_dump(exclude=changed)


def test_only_the_papers_variants_are_seen_before_they_are_tested_on(
    shipped: Loaded, paper: Loaded
) -> None:
    def transductive(loaded: Loaded) -> set[str]:
        params, _ = loaded
        return {
            name
            for protocol, names in params.datasets.items()
            for name in names
            if params_of(loaded, protocol, name).prepare.transductive
        }

    assert transductive(shipped) == set()
    assert transductive(paper) == set(paper[0].of(Protocol.DOMAIN_GENERALISATION))


@pytest.mark.parametrize("protocol", Protocol)
def test_a_data_set_is_prepared_for_its_protocol(shipped: Loaded, protocol: Protocol) -> None:
    assert params_of(shipped, protocol, TARGETS[protocol]).prepare.protocol is protocol


@pytest.mark.parametrize("protocol", [one for one in Protocol if one.has_source])
def test_the_source_is_taught_all_its_classes(shipped: Loaded, protocol: Protocol) -> None:
    source = shipped[0].source.dataset
    assert params_of(shipped, protocol, source).prepare.protocol is Protocol.ALL_CLASSES
    assert job_of(shipped, protocol, source).teacher == RESULTS / SOURCE / "teacher" / f"{source}-2"


def test_base_to_novel_has_the_profiles_numbers(shipped: Loaded) -> None:
    for name in shipped[0].of(Protocol.BASE_TO_NOVEL):
        assert params_of(shipped, Protocol.BASE_TO_NOVEL, name) == shipped[1].for_dataset(name)


@pytest.mark.parametrize("protocol", [one for one in Protocol if one.has_source])
def test_a_target_gets_the_teacher_of_the_source_with_the_same_seed(
    shipped: Loaded, protocol: Protocol
) -> None:
    source = shipped[0].source.dataset
    mine = job_of(shipped, protocol, TARGETS[protocol])
    assert mine.teacher == job_of(shipped, protocol, source).teacher
    assert mine.student.name == f"{TARGETS[protocol]}-from-{source}-2"


def test_no_two_protocols_or_seeds_write_to_one_place(shipped: Loaded) -> None:
    params, _ = shipped
    folders = [
        folder
        for protocol, names in params.datasets.items()
        for name in names
        for seed in params.seeds
        for mine in [job_of(shipped, protocol, name, seed)]
        for folder in (
            mine.prepared, mine.vectors, mine.student, mine.evaluation,
            *(() if protocol.has_source else (mine.teacher,)),
        )
    ]  # fmt: skip
    assert len(folders) == len(set(folders))


def resolved(stage: str, part: str, loaded: Loaded, **item: object) -> list[str]:
    """Return a part of a stage with its placeholders filled in, paths seen from the profile."""
    block = PIPELINE[stage].get("do", PIPELINE[stage])
    names: dict[str, object] = {
        "profile.root": ".",
        "teacher.weights": loaded[1].teacher.weights,
        "student.weights": loaded[1].student.weights,
        "source.dataset": loaded[0].source.dataset,
        **{f"item.{key}": value for key, value in item.items()},
        **({"item": item["seed"]} if "do" in PIPELINE[stage] else {}),
    }
    texts = [next(iter(one)) if isinstance(one, dict) else str(one) for one in block.get(part, [])]
    return [re.sub(r"\$\{(.+?)\}", lambda name: str(names[name[1]]), text) for text in texts]


def paths(stage: str, part: str, loaded: Loaded, **item: object) -> set[str]:
    base = ROOT / FOLDER
    return {
        (base / text).resolve().relative_to(ROOT).as_posix()
        for text in resolved(stage, part, loaded, **item)
    }


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize(
    ("suffix", "ran"),
    [("_teacher", ("teacher",)), ("_student", ("class_vectors", "student")), ("", ("evaluate",))],
)
def test_a_stage_depends_on_what_it_reads_and_declares_what_it_writes(
    shipped: Loaded, protocol: Protocol, suffix: str, ran: tuple[str, ...]
) -> None:
    name, stage = TARGETS[protocol], f"{protocol}{suffix}"
    if protocol.has_source and suffix == "_teacher":
        name, stage = shipped[0].source.dataset, "source_teacher"
    mine = job_of(shipped, protocol, name)
    item: dict[str, object] = {"dataset": name, "seed": 2}
    verbs = [re.findall(r"pd_core (\S+) (\S+) --protocol (\S+) --seed (\d)", text)[0]
             for text in resolved(stage, "cmd", shipped, **item)]  # fmt: skip
    prepares = stage == "source_teacher" or stage.endswith("_teacher") or (
        protocol.has_source and suffix == "_student"
    )  # fmt: skip
    ran = ("prepare", *ran) if prepares else ran

    assert [verb.replace("-", "_") for verb, *_ in verbs] == list(ran)
    assert {(name, seed) for _, name, _, seed in verbs} == {(name, "2")}
    assert {Protocol(one).has_source for _, _, one, _ in verbs} == {protocol.has_source}

    written = {output(mine, one) for one in ran}
    outs = paths(stage, "outs", shipped, **item)
    outs |= paths(stage, "plots", shipped, **item) | paths(stage, "metrics", shipped, **item)
    covered = [folder for folder in written if any(
        Path(out).is_relative_to(FOLDER / DATA) and Path(out).is_relative_to(folder) for out in outs
    )]  # fmt: skip
    assert set(covered) == written
    assert all(any(Path(out).is_relative_to(folder) for folder in written) for out in outs)

    deps = paths(stage, "deps", shipped, **item)
    read = {path for one in ran for path in inputs(mine, one)} - written
    for path in read:
        assert any(Path(dep).is_relative_to(path) for dep in deps), path
    assert (f"fingerprints/{name}.json" in deps) == ("prepare" in ran)


def test_every_stage_depends_on_the_numbers_that_it_reads() -> None:
    for stage, block in PIPELINE.items():
        content = block.get("do", block)
        commands = content["cmd"] if isinstance(content["cmd"], list) else []
        verbs = {re.findall(r"pd_core (\S+)", text)[0].replace("-", "_") for text in commands}
        files = [one for one in content.get("params", []) if isinstance(one, dict)]
        tracked = {key for one in files for keys in one.values() for key in keys}
        assert verbs <= {key.partition(".")[0] for key in tracked}, stage


def test_the_report_reads_all_that_is_measured() -> None:
    assert FOLDER / PIPELINE["report"]["deps"][0] == EVALUATIONS


def test_the_paper_links_to_the_same_pipeline() -> None:
    link = ROOT / "paper" / FOLDER / "dvc.yaml"
    assert link.is_symlink()
    assert link.resolve() == ROOT / FOLDER / "dvc.yaml"


@pytest.fixture
def edited(tmp_path: Path) -> Path:
    """Copy the shipped file and its profile, to be edited."""
    (tmp_path / FOLDER).mkdir()
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    file = tmp_path / FOLDER / "params.yaml"
    file.write_text(FILE.read_text())
    return file


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds: [1, 2, 3]", "seeds: []", "seeds = "),
        ("seeds:", "seed:", r"unknown key 'seed'; did you mean 'seeds'\?"),
        ("  cross_dataset:\n", "  cross_datasets:\n", "datasets.cross_datasets"),
        ("symbols_neon", "symbols_neo", "did you mean 'embedded_symbols_neon'"),
        ("- embedded_symbols_neon", "- embedded_symbols", "is the source: list targets only"),
        ("    gpa_std: 5", "    gpa_sd: 5", "unknown key 'source.teacher.gpa_sd'"),
        ("all_classes: {}", "all_classes: {student: {lr: -1}}", "changes.all_classes.student.lr"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_in_one_line(edited: Path, old: str, new: str, message: str) -> None:
    text = edited.read_text()
    assert old in text
    edited.write_text(text.replace(old, new))
    with pytest.raises(PdError, match=message) as caught:
        load_protocols(edited.parent)
    assert "\n" not in str(caught.value)


def test_a_data_set_of_another_protocol_is_refused(shipped: Loaded) -> None:
    with pytest.raises(UnknownName, match="data set of all_classes"):
        params_of(shipped, Protocol.ALL_CLASSES, "embedded_symbols_neon")


def test_a_protocol_has_its_source_from_the_file_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(
        verbs.app,
        ["student", "embedded_greek", "--protocol", "cross_dataset", "--source", "embedded_latin"],
    )
    assert isinstance(done.exception, BadParams)
    assert "protocols/params.yaml names the source" in str(done.exception)
