"""Frozen text features: every class in every template, averaged.

The reference's cost is so much per template, so it runs over some of them; both sides are compared
on these, and ours over all of them is compared template by template.
"""

from dataclasses import dataclass

from torch.nn.functional import normalize

from benchmarks import reference
from benchmarks.outcome import Outcome, Row
from benchmarks.sizes import SMALL, TINY_SMALL, build, class_names
from benchmarks.timing import Note, check_agreement, take_turns
from pd_core.models.class_vectors import template_features
from pd_core.models.clip import imagenet_templates
from pd_core.models.teacher import Teacher


@dataclass(frozen=True)
class Size:
    """Sizes of the benchmark.

    Attributes:
        templates: of ours alone.
        compared: of both sides, evenly spaced among those.
    """

    model: str = SMALL
    classes: int = 100
    templates: int = 60
    compared: int = 6
    rounds: int = 3
    most: float = 0.25


REAL = Size()
TINY = Size(TINY_SMALL, classes=4, templates=6, compared=3, rounds=1, most=1.0)

OURS, ALL, REFERENCE = "ours", "ours, all templates", "reference"


def measure(size: Size, note: Note) -> Outcome:
    """Measure the features of some templates by both ways, and of all by ours."""
    towers, names = build(size.model), class_names(size.classes)
    every = imagenet_templates(size.templates)
    some = every[:: size.templates // size.compared][: size.compared]

    def ours(*templates: str) -> float:
        means = template_features(Teacher(towers), names, templates)
        return float(normalize(means, dim=-1).abs().sum())

    def plain(*templates: str) -> float:
        return float(reference.frozen_text(towers, names, templates).abs().sum())

    note("warm-up: one template each")
    check_agreement({OURS: ours(some[0]), REFERENCE: plain(some[0])})
    turns = take_turns(
        {OURS: lambda: ours(*some), REFERENCE: lambda: plain(*some), ALL: lambda: ours(*every)},
        rounds=size.rounds,
        note=note,
        warm_up=False,
    )
    check_agreement({side: turns.values[side] for side in (OURS, REFERENCE)})
    what = f"{size.classes} classes"
    both = turns.row(f"{what}, {len(some)} templates", OURS, REFERENCE, most=size.most)
    alone = turns.row(f"{what}, {len(every)} templates", ALL, REFERENCE)
    share = len(some) / len(every)
    remark = (
        f"the reference's cost is so much per template, so it runs over {len(some)} of"
        f" {len(every)}, evenly spaced; ours runs over the same, and over all"
    )
    return Outcome((both, _per_template(alone, share, size.most)), remarks=(remark,))


def _per_template(row: Row, share: float, most: float) -> Row:
    return Row(
        what=row.what,
        value=row.value * share,
        low=None if row.low is None else row.low * share,
        high=None if row.high is None else row.high * share,
        clock=row.clock,
        other=None if row.other is None else row.other * share,
        most=most,
        note="per template, against the reference's cost of one",
    )
