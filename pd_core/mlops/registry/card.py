"""The model card of a student, as Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pd_core.reporting.results import TITLES, WHO

Metrics = Mapping[str, Mapping[str, float]]  # who -> base, novel, hm, all, in percent

_COLUMNS = {"base": "base", "novel": "novel", "hm": "harmonic mean", "all": "all classes"}
_Z = 1.96  # of a 95% interval


def card(
    name: str,
    info: Mapping[str, Any],
    metrics: Metrics,
    counts: Mapping[str, int],
    tags: Mapping[str, str],
) -> str:
    """Write the card of a version.

    Args:
        name: of the model.
        info: what its `model.json` says.
        metrics: accuracies in percent by who; none where no test picture has a label.
        counts: see `samples.counts`; may be empty.
        tags: of the version: protocol, seed, git commit, ...
    """
    sections = [
        f"# {name}",
        _summary(info),
        _data(info, counts),
        _accuracy(metrics, counts, tags),
        _limits(counts),
        _licence(str(info.get("model", ""))),
        _origin(tags),
        _classes(info["names"]),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def with_change(text: str, change: str, names: Sequence[str]) -> str:
    """Record in a card that classes were added, removed or renamed.

    Args:
        text: the card of the version before.
        change: one line that says what was done.
        names: of all classes as they are now.
    """
    before = text.partition(_CLASSES)[0].rstrip()
    if _CHANGES not in before:
        before += f"\n\n{_CHANGES}\n\nThe accuracy above was measured before these.\n"
    return f"{before}\n- {change}\n\n{_classes(names)}\n"


_CHANGES = "## Changes of the classes"
_CLASSES = "## Classes"


def _summary(info: Mapping[str, Any]) -> str:
    sizes = info["network"]
    return (
        f"Names what is in a picture, one of {len(info['names'])} classes. A distilled CLIP: the "
        f"image tower of `{info.get('model', '')}`, frozen, with learnt prompts in "
        f"{sizes['prompt_depth']} of its {sizes['layers']} blocks and a learnt projector; its "
        f"features are compared with class vectors of the teacher, {info.get('vectors', '')} "
        f"(PromptKD, CVPR 2024, arXiv 2403.02781). Pictures are resized to {sizes['image_size']} "
        f"pixels (shorter side, bicubic), the middle square is taken and normalised as for CLIP; a "
        f"rotation noted in EXIF is not applied."
    )


def _data(info: Mapping[str, Any], counts: Mapping[str, int]) -> str:
    if not counts:
        return ""
    return (
        f"## Data\n\n`{info.get('dataset', '')}`: the teacher saw {counts['labels']} labelled "
        f"pictures of {counts['taught']} of {counts['classes']} classes, the student "
        f"{counts['unlabelled']} pictures without labels."
    )


def _accuracy(metrics: Metrics, counts: Mapping[str, int], tags: Mapping[str, str]) -> str:
    rows = {who: metrics[who] for who in WHO if who in metrics}
    if not rows:
        return "## Accuracy\n\nUnknown: no labelled test pictures." + "".join(
            f" {key}: {value}." for key, value in _estimates(metrics)
        )
    keys = [key for key in _COLUMNS if key in next(iter(rows.values()))]
    lines = [
        "## Accuracy",
        "",
        f"Top-1 in percent on {counts.get('all', 0)} test pictures that no training has seen; "
        f"protocol `{tags.get('protocol', '')}`, seed {tags.get('seed', '')}, epoch chosen by "
        f"`{tags.get('selection', '')}`. After ± the half of a 95% interval for so many pictures; "
        "another seed adds to it.",
        "",
        "| | " + " | ".join(_COLUMNS[key] for key in keys) + " |",
        "|---|" + "---:|" * len(keys),
        *(
            f"| {TITLES[who]} | "
            + " | ".join(_with_spread(scores[key], counts.get(key, 0)) for key in keys)
            + " |"
            for who, scores in rows.items()
        ),
    ]
    return "\n".join(lines)


def _estimates(metrics: Metrics) -> list[tuple[str, str]]:
    return [
        (key.replace("_", " "), f"{scores['student']:.1f}%")
        for key, scores in metrics.items()
        if isinstance(scores, Mapping) and "student" in scores
    ]


def _with_spread(percent: float, count: int) -> str:
    """Write an accuracy with the half width of Wilson's interval, if it was counted."""
    if not count:
        return f"{percent:.1f}"
    share, z = percent / 100, _Z
    root = math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return f"{percent:.1f} ± {100 * z * root / (1 + z * z / count):.1f}"


def _limits(counts: Mapping[str, int]) -> str:
    untaught = counts.get("classes", 0) - counts.get("taught", 0)
    novel = (
        f" {untaught} of the classes had no labels at all, and are recognised less well."
        if untaught
        else ""
    )
    return (
        "## Limits\n\nIt always answers with one of its classes, also where none is in the "
        "picture, and its probabilities are not calibrated. It knows pictures like those it was "
        f"distilled on, and no others.{novel} Not for decisions about people."
    )


def _licence(model: str) -> str:
    if model.startswith("embedded-"):
        licence = "Apache-2.0: trained for this project on drawn characters"
    else:
        licence = (
            f"that of the CLIP `{model}` that it was made from; OpenAI's are under the MIT "
            f"licence, and their model card excludes uses"
        )
    return f"## Licence of the weights\n\n{licence[0].upper()}{licence[1:]}."


def _origin(tags: Mapping[str, str]) -> str:
    known = [
        (key, tags[key])
        for key in sorted(tags)
        if key in ("git_commit", "profile") or key.startswith("out:")
    ]
    if not known:
        return ""
    rows = "\n".join(f"| {key} | `{value}` |" for key, value in known)
    return f"## Origin\n\n| | |\n|---|---|\n{rows}"


def _classes(names: Sequence[str]) -> str:
    return f"{_CLASSES}\n\n" + "\n".join(f"{label}. {name}" for label, name in enumerate(names))
