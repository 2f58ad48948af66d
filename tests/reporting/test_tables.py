"""A table is the same in a terminal, in Markdown and on the page."""

import pytest
from golden import shown

from pd_core.cli.common import print_table
from pd_core.reporting.tables import NONE, Column, Kind, Row, Table

TABLE = Table(
    ("variant", Column("half", words=True), "hm"),
    [
        Row(("Form of the loss",), Kind.HEADING),
        ("[b]features[/b] | L1", "base", "62.25"),
        Row(("logits", "", "65.81"), Kind.REFERENCE),
        Row(("average", "all", NONE), Kind.AVERAGE),
    ],
    title="Ablations",
    notes=["percent"],
)


def test_markdown_escapes_and_sets_the_reference_in_bold() -> None:
    assert TABLE.markdown().splitlines() == [
        "| variant | half | hm |",
        "| --- | --- | ---: |",
        r"| [b]features[/b] \| L1 | base | 62.25 |",
        "| **logits** |  | **65.81** |",
        "| average | all | – |",
    ]


def test_a_terminal_shows_headings_lines_and_notes_and_reads_no_markup() -> None:
    lines = [" ".join(line.split()) for line in shown(TABLE).splitlines()]
    rule = lines[2]
    assert set(rule) == {"─"}
    assert lines == [
        "Ablations", "variant half hm", rule, "Form of the loss",
        "[b]features[/b] | L1 base 62.25", "logits 65.81", rule, "average all –", "percent",
    ]  # fmt: skip


def test_a_program_reads_a_table_without_lines() -> None:
    assert "─" not in shown(TABLE.terminal(plain=True))


def test_a_long_name_is_broken_or_cut_where_the_first_column_has_a_width() -> None:
    rows = [("a name that is far too long for it " * 3, "1.00")]
    assert len(shown(Table(("name", "hm"), rows), width=40).splitlines()) > 3
    *_, line = shown(Table(("name", "hm"), rows, name_width=10), width=40).splitlines()
    assert line.endswith("1.00")
    assert "… " in line


def test_a_table_in_a_pipe_is_as_wide_as_its_cells(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    heads = [f"column {number}" for number in range(20)]

    print_table(Table(["data set", *heads], [("embedded_operators", *heads)]))

    (first, *_, last) = capsys.readouterr().out.splitlines()
    assert first.split() == ["data", "set", *" ".join(heads).split()]
    assert last.split() == ["embedded_operators", *" ".join(heads).split()]
