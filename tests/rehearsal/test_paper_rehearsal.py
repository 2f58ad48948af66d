"""The paper's profile is rehearsed on copies of its data sets, with random weights."""

import sys
from pathlib import Path

import miniatures
import pytest
import tiny

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))

from benchmarks.rehearsal import trees, walk  # noqa: E402
from benchmarks.rehearsal.__main__ import with_models  # noqa: E402
from pd_core.core.errors import BadData  # noqa: E402
from pd_core.data.catalog.catalogue import dataset_spec  # noqa: E402
from pd_core.data.catalog.readers import read_splits  # noqa: E402
from pd_core.data.loading.splits import Protocol  # noqa: E402
from pd_core.pipeline.protocols import load_protocols  # noqa: E402
from pd_core.rehearsal.rehearse import profile_items, protocol_items, representatives  # noqa: E402
from pd_core.rehearsal.workload import load_of, published_sizes  # noqa: E402


@pytest.mark.parametrize(
    "name", ["caltech101", "oxford_pets", "stanford_cars", "eurosat", "ucf101", "imagenet_a"]
)
def test_a_copy_is_read_with_all_classes_and_the_images_of_its_row(
    name: str, tmp_path: Path
) -> None:
    row = trees.row_of(name, share=0.0)
    miniatures.write(row, tmp_path)

    splits = read_splits(row, tmp_path)

    assert len(splits.class_names) == dataset_spec(name).num_classes
    with pytest.raises(BadData, match="the lists are not the published ones"):
        read_splits(dataset_spec(name), tmp_path)


def test_a_larger_share_has_more_images() -> None:
    row = trees.row_of("eurosat", share=0.01)

    assert (row.train, row.val, row.test) == (10 * 14, 10 * 5, 10 * 8)


def test_all_data_sets_of_the_paper_have_a_size_of_images() -> None:
    assert tuple(trees.PIXELS) == miniatures.NAMES


def test_protocols_repeat_over_seeds_and_tune_the_sources_teacher_once_each() -> None:
    rules, paper = load_protocols(ROOT / "paper" / "protocols")

    listed = protocol_items(rules, paper)

    assert len(listed) == 11 + 10 + 4 + 1
    items = {item.name: item for item in listed}
    assert {item.repeats for item in items.values()} == {3}
    assert items["source/imagenet"].stages == ("prepare", "teacher")
    assert "teacher" not in items["cross_dataset/dtd"].stages
    source = items["source/imagenet"].params
    sizes = published_sizes(dataset_spec("imagenet"), source.prepare, "test")
    assert load_of("teacher", source, sizes).live == 20 * 1000 * 16 // 4


def test_on_a_cpu_the_paper_is_measured_on_its_smallest_and_a_larger_data_set() -> None:
    rules, paper = load_protocols(ROOT / "paper" / "protocols")
    items = [*profile_items(paper, paper.datasets), *protocol_items(rules, paper)]

    measured = {item.params.name: item.stages for item in representatives(items, few=True)}

    assert measured == {
        "eurosat": items[9].stages,
        "stanford_cars": ("prepare", "teacher", "class_vectors", "tuned_student"),
    }


@pytest.mark.slow
def test_every_stage_of_every_protocol_is_gone_through(tmp_path: Path) -> None:
    tiny.register()
    rules, paper = load_protocols(ROOT / "paper" / "protocols")
    few = {
        Protocol.BASE_TO_NOVEL: ("eurosat",),
        Protocol.CROSS_DATASET: ("eurosat",),
        Protocol.DOMAIN_GENERALISATION: ("imagenet_a",),
    }
    source = rules.source.model_copy(update={"dataset": "dtd"})
    rules = rules.model_copy(update={"datasets": few, "source": source})
    root = tmp_path / "raw"
    rows = {name: trees.row_of(name, 0.002) for name in ("eurosat", "dtd", "imagenet_a")}
    for row in rows.values():
        miniatures.write(row, root)
    prints = {name: trees.write_fingerprint(row, root, tmp_path) for name, row in rows.items()}
    models = with_models(paper, "cpu", "tiny", "tiny", tmp_path)
    notes: list[str] = []

    with tiny.torch_restored():
        going = walk.Walk(tmp_path / "walk", rules, models, rows, prints, root, notes.append)
        seen = going.run()

    stages = ("prepare", "class_vectors", "student", "evaluate")
    assert seen == {
        ("source", "prepare"): 1,
        ("source", "teacher"): 1,
        ("base_to_novel", "teacher"): 1,
        **{(str(protocol), stage): 1 for protocol in few for stage in stages},
    }
    results = tmp_path / "walk" / "protocols" / "data" / "evaluate"
    assert len(list(results.rglob("metrics.json"))) == 3
