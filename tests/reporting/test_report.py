"""The report holds every number once, rounded, and is the same to the byte."""

import hashlib
import json
import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import golden
import pytest
from golden import shown
from PIL import Image, ImageChops

from pd_core.core import options
from pd_core.core.artifacts import write_sums
from pd_core.core.errors import BadArtifact, MissingFile, PdError
from pd_core.data.catalog import embedded
from pd_core.data.catalog.catalogue import dataset_spec
from pd_core.reporting import report, results


def _write(folder: Path, name: str, base: float, novel: float) -> None:
    scores = {"base": base, "novel": novel, "hm": 2 * base * novel / (base + novel), "all": 50.0}
    (folder / name).mkdir(parents=True)
    (folder / name / "metrics.json").write_text(json.dumps(dict.fromkeys(results.MODELS, scores)))


@pytest.fixture
def evaluations(tmp_path: Path) -> Path:
    folder = tmp_path / "evaluate"
    _write(folder, "greek", 80.123456, 60.0)
    _write(folder, "arrows", 40.0, 70.006)
    return folder


def _summary(evaluations: Path, *names: str) -> dict[str, Any]:
    return report.summarise("quickstart", results.read_evaluations(evaluations, names))


def test_the_averages_harmonic_mean_is_that_of_the_averages_as_in_the_paper() -> None:
    # The paper's table 1 for PromptKD: 86.96 and 80.73 give 83.73.
    halves = [
        {"base": 90.0, "novel": 80.0, "hm": 84.71},
        {"base": 83.92, "novel": 81.46, "hm": 1.0},
    ]
    evaluations = {
        str(number): dict.fromkeys(results.MODELS, row) for number, row in enumerate(halves)
    }
    average = report.summarise("paper", evaluations)["average"]
    assert average["student"] == {"base": 86.96, "novel": 80.73, "hm": 83.73}


def test_nothing_right_at_all_is_an_average_of_zero() -> None:
    row = {"base": 0.0, "novel": 50.0, "hm": 0.0}
    average = report.summarise("paper", {"dtd": dict.fromkeys(results.MODELS, row)})["average"]
    assert average["teacher"]["hm"] == 0.0


def test_writing_twice_gives_the_same_bytes_whatever_the_users_matplotlib_style(
    evaluations: Path, tmp_path: Path
) -> None:
    import matplotlib as mpl

    summary = _summary(evaluations)
    report.write_summary(summary, tmp_path / "first")
    with mpl.rc_context({"font.size": 20, "axes.facecolor": "red", "savefig.dpi": 30}):
        report.write_summary(summary, tmp_path / "second")
    for name in ("summary.json", "summary.md", "summary.png"):
        first, second = (
            hashlib.sha256((tmp_path / run / name).read_bytes()).hexdigest()
            for run in ("first", "second")
        )
        assert first == second, name


def test_the_figure_is_wide_names_no_program_and_changes_with_the_numbers(
    evaluations: Path,
) -> None:
    scores = results.read_evaluations(evaluations)
    before = report.figure(report.summarise("quickstart", scores))
    with Image.open(BytesIO(before)) as image:
        assert image.format == "PNG"
        assert image.width >= 1200
        assert "Software" not in image.info
    changed = {**scores, "greek": scores["arrows"]}
    assert report.figure(report.summarise("quickstart", changed)) != before


def test_the_summary_is_shown_as_json_markdown_and_in_a_terminal(evaluations: Path) -> None:
    summary, titles = _summary(evaluations), {"greek": "Greek, chalk | board"}
    golden.check("report.json", json.dumps(summary, indent=1))
    golden.check("report.md", report.markdown(summary, titles))
    golden.check("report.txt", shown(report.table(summary, titles)))


def _terminal(titles: Mapping[str, str], *models: str) -> list[str]:
    """Show data sets whose student gained 22.5 points in a terminal of 80 columns."""
    weak, strong = ({"base": value, "novel": value, "hm": value} for value in (40.0, 62.5))
    scores = {**dict.fromkeys([*results.MODELS, *models], weak), "student": strong}
    summary = report.summarise("quickstart", dict.fromkeys(titles, scores))
    return shown(report.table(summary, titles)).splitlines()


def test_80_columns_hold_the_names_of_the_embedded_data_sets() -> None:
    titles = {name: dataset_spec(name).title for name in embedded.DOMAINS}
    lines = _terminal(titles)
    assert max(map(len, lines)) <= 80
    _, head, line, *rows = lines
    assert head.split() == ["data", "set", "student", "teacher", "gain"]
    assert set(line) == {"─"}
    names = [row.partition(" 40.0")[0].rstrip() for row in rows[: len(titles)]]
    assert names == [titles[name] for name in sorted(titles)]


def test_a_name_that_is_too_long_for_80_columns_is_cut_and_no_number_is() -> None:
    lines = _terminal({"greek": "Letters of an alphabet, " * 5}, options.BASELINE)
    assert max(map(len, lines)) <= 80
    (row,) = [line for line in lines if "Letters" in line]
    assert row.split()[-8:] == ["40.0", "→", "62.5", "40.0", "→", "40.0", "40.0", "+22.5"]
    assert "…" in row


def test_a_data_set_of_which_all_classes_were_taught_has_one_number_and_no_part_in_the_average(
    evaluations: Path,
) -> None:
    scores = {who: {"all": 70.0 + place} for place, who in enumerate(results.MODELS)}
    (evaluations / "parts").mkdir()
    (evaluations / "parts" / "metrics.json").write_text(json.dumps(scores))
    summary = _summary(evaluations)
    before = _summary(evaluations, "greek", "arrows")
    assert summary["datasets"]["parts"]["student"] == {"all": 73.0, "accuracy": 73.0}
    assert summary["average"] == before["average"]
    row = next(line for line in report.markdown(summary).splitlines() if "parts" in line)
    assert row == "| parts (all classes) | 70.00 | 71.00 | 72.00 | **73.00** |"
    assert "parts (all classes)" in shown(report.table(summary))


def test_such_data_sets_alone_have_a_figure_without_an_average() -> None:
    scores = {"parts": {who: {"all": 70.0} for who in results.MODELS}}
    summary = report.summarise("quickstart", scores)
    assert summary["average"] == {}
    assert "average" not in report.markdown(summary).split("---:")[1]
    with Image.open(BytesIO(report.figure(summary))) as image:
        assert image.format == "PNG"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1], "holds no scores"),
        ({"zero_shot_student": {"base": 1.0}}, r"no number 'zero_shot_student\.novel'"),
        *(
            ({"zero_shot_student": {"base": value, "novel": 1.0, "hm": 1.0}}, "student.base' in")
            for value in (None, "high", float("nan"), True, 101, -1, [1])
        ),
    ],
)
def test_metrics_that_are_missing_or_no_numbers_are_refused(
    evaluations: Path, content: object, reason: str
) -> None:
    (evaluations / "greek" / "metrics.json").write_text(json.dumps(content))
    with pytest.raises(BadArtifact, match=f"{reason}.*run `dvc repro evaluate@greek`"):
        results.read_evaluations(evaluations)


def test_a_data_set_that_was_not_evaluated_is_named_with_the_command_to_run(
    evaluations: Path, tmp_path: Path
) -> None:
    with pytest.raises(MissingFile, match="dvc repro evaluate@digits"):
        results.read_evaluations(evaluations, ["greek", "digits"])
    with pytest.raises(MissingFile, match="dvc repro"):
        results.read_evaluations(tmp_path / "nothing")


def test_a_folder_that_cannot_be_written_is_one_line(evaluations: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    summary = _summary(evaluations)
    with pytest.raises(PdError, match="cannot write"):
        report.write_summary(summary, tmp_path / "file" / "out")


def _prepare(folder: Path, name: str, colour: tuple[int, int, int]) -> None:
    target = folder / name
    target.mkdir(parents=True)
    picture = BytesIO()
    Image.new("RGB", (40, 30), colour).save(picture, format="PNG")
    with zipfile.ZipFile(target / "images.zip", "w") as archive:
        for number in range(5):
            archive.writestr(f"{number}.png", picture.getvalue())
    test = [[f"{number}.png", 0] for number in range(5)]
    split = {"images": "images.zip", "test": test, "title": f"The {name} ones"}
    (target / "split.json").write_text(json.dumps(split))
    write_sums(target)


def test_samples_show_a_strip_of_test_pictures_per_data_set(tmp_path: Path) -> None:
    colours = {"red": (200, 0, 0), "blue": (0, 0, 200)}
    for name, colour in colours.items():
        _prepare(tmp_path, name, colour)
    with Image.open(BytesIO(report.samples(tmp_path, colours, count=3))) as sheet:
        pixels = [sheet.getpixel((sheet.width - 30, y)) for y in (36, 104)]
    assert pixels == list(colours.values())


@pytest.mark.parametrize("title", ["red", "Armenian, Georgian and Hebrew letters, embroidery"])
def test_no_name_runs_under_the_pictures_beside_it(title: str, tmp_path: Path) -> None:
    _prepare(tmp_path, "red", (200, 0, 0))
    samples = report.samples(tmp_path, ["red"], titles={"red": title}, count=2)
    with Image.open(BytesIO(samples)) as sheet:
        left = next(x for x in range(sheet.width) if sheet.getpixel((x, 36)) == (200, 0, 0))
        name = ImageChops.invert(sheet.crop((0, 0, left, sheet.height))).getbbox()
    assert name is not None
    assert name[0] >= 10
    assert name[2] <= left - 10
    assert name[2] - name[0] > 6 * len(title)


def test_the_stage_writes_all_files_with_titles_and_needs_no_photos(
    evaluations: Path, tmp_path: Path
) -> None:
    prepared = tmp_path / "prepare"
    for name in ("greek", "arrows"):
        _prepare(prepared, name, (0, 90, 0))
    (prepared / "arrows" / "images.zip").unlink()
    out = tmp_path / "out"
    report.run(evaluations, prepared, out, profile="quickstart", datasets=["greek", "arrows"])
    assert {path.name for path in out.iterdir()} == {
        "samples.png",
        "summary.json",
        "summary.md",
        "summary.png",
    }
    assert "| The greek ones |" in (out / "summary.md").read_text()
    assert report.read_summary(out)["datasets"].keys() == {"greek", "arrows"}
    with Image.open(out / "samples.png") as sheet:
        assert sheet.height < 100  # one strip
