"""Results of the benchmarks: JSON, tables and comparisons with targets."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RESULTS, TABLE, PICTURE = "results.json", "table.md", "scaling.png"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: was measured.
        value: what came out: a ratio, unless there is a unit.
        low: the smallest value of a round.
        high: the largest.
        clock: which clock `value` was read from; "" if none.
        other: the same ratio by the other clock.
        least: the target, if the value is to be this or more.
        most: the target, if the value is to be this or less.
        unit: of the value.
        note: remark.
    """

    what: str
    value: float
    low: float | None = None
    high: float | None = None
    clock: str = ""
    other: float | None = None
    least: float | None = None
    most: float | None = None
    unit: str = ""
    note: str = ""

    @property
    def verdict(self) -> str:
        """`met`, `**missed**`, or nothing without a target."""
        if self.least is None and self.most is None:
            return ""
        low_enough = self.most is None or self.value <= self.most
        return "met" if low_enough and (self.least or 0) <= self.value else "**missed**"

    def cells(self) -> list[str]:
        """Return what stands in the columns of the table, from `what` on."""
        spread = "" if self.low is None else f"{_short(self.low)} to {_short(self.high)}"
        clock = f" ({self.clock})" if self.clock else ""
        value = f"{_short(self.value)}{' ' if self.unit else ''}{self.unit}{clock}"
        return [
            self.what, self._target(), value, spread, _short(self.other), self.verdict, self.note
        ]  # fmt: skip

    def _target(self) -> str:
        if self.least is not None and self.most is not None:
            return f"{self.least:g} to {self.most:g}"
        if self.most is not None:
            return f"at most {self.most:g}"
        return "" if self.least is None else f"at least {self.least:g}"


@dataclass(frozen=True)
class Series:
    """Cost against one size.

    Attributes:
        name: whose cost.
        size: what grows.
        points: size and median seconds.
        line: the line through them, in words.
    """

    name: str
    size: str
    points: tuple[tuple[float, float], ...]
    line: str


@dataclass(frozen=True)
class Outcome:
    """Results of a part.

    Attributes:
        rows: of the table.
        series: of the second table, and the picture.
        remarks: on how it was measured.
    """

    rows: tuple[Row, ...]
    series: tuple[Series, ...] = ()
    remarks: tuple[str, ...] = ()
    machine: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Outcome":
        """Read what `as_json` returned, and JSON has kept."""
        series = [
            Series(**curve | {"points": tuple((x, y) for x, y in curve["points"])})
            for curve in content["series"]
        ]
        rows = tuple(Row(**row) for row in content["rows"])
        return cls(rows, tuple(series), tuple(content["remarks"]), content["machine"])


def read(folder: Path) -> dict[str, Outcome]:
    """Read the outcomes of all parts that were measured, by part."""
    file = folder / RESULTS
    parts = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {part: Outcome.from_json(content) for part, content in parts.items()}


def write(folder: Path, outcomes: Mapping[str, Outcome]) -> None:
    """Write the outcomes of all parts, and their table."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {part: outcome.as_json() for part, outcome in outcomes.items()}
    text = json.dumps(content, indent=1, ensure_ascii=False)
    _replace(folder / RESULTS, text + "\n")
    _replace(folder / TABLE, table(outcomes))


def table(outcomes: Mapping[str, Outcome]) -> str:
    """Write the table of all parts, in Markdown."""
    lines = [
        "# What the steps cost",
        "",
        "Ours against a plain path that does what the original does: 77 tokens, class vectors at"
        " every step, both towers online. Sides take turns in one process, fp32, random weights."
        " A ratio is that of medians, by the clock in brackets: seconds of the processor, all"
        " threads together, or those of the wall; the spread is from the smallest to the largest"
        " ratio of a round. Written by `make bench`.",
        "",
        *_machines(outcomes),
        "",
        "| part | what | target | measured | spread | other clock | target is | remark |",
        "|---|---|---|---:|---:|---:|---|---|",
    ]
    for part, outcome in outcomes.items():
        lines += [f"| {' | '.join([part, *row.cells()])} |" for row in outcome.rows]
    remarks = [(part, remark) for part, outcome in outcomes.items() for remark in outcome.remarks]
    lines += ["", *(f"- {part}: {remark}" for part, remark in remarks)] if remarks else []
    return "\n".join([*lines, *_scaling(outcomes), ""])


def _scaling(outcomes: Mapping[str, Outcome]) -> list[str]:
    series = [curve for outcome in outcomes.values() for curve in outcome.series]
    if not series:
        return []
    lines = ["", "## Scaling", "", f"![cost against size]({PICTURE})", ""]
    lines += ["| whose seconds | by | measured | line through them |", "|---|---|---|---|"]
    for curve in series:
        points = ", ".join(f"{x:g}: {_short(y)} s" for x, y in curve.points)
        lines.append(f"| {curve.name} | {curve.size} | {points} | {curve.line} |")
    return lines


def _machines(outcomes: Mapping[str, Outcome]) -> list[str]:
    """Return a line for each machine, with its parts if there are several."""
    parts: dict[str, list[str]] = {}
    for part, outcome in outcomes.items():
        facts = ", ".join(f"{name} {value}" for name, value in outcome.machine.items())
        parts.setdefault(facts, []).append(part)
    several = len(parts) > 1
    return [
        f"Measured with: {facts}{f' ({chr(44).join(names)})' if several else ''}."
        for facts, names in parts.items()
    ]


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _replace(path: Path, text: str) -> None:
    new = path.with_name(f"{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def of_all(names: Sequence[str], outcomes: Mapping[str, Outcome]) -> dict[str, Outcome]:
    """Put outcomes into the order of the parts; those of no known part are dropped."""
    return {name: outcomes[name] for name in names if name in outcomes}
