"""Whether a student has learnt anything of its teacher at all."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pd_core.classifier import Classifier
from pd_core.errors import FailedRun
from pd_core.fit import Batches
from pd_core.models.compute import autocast
from pd_core.options import Precision
from pd_core.parallel import gathered
from pd_core.supervision import Look, Recorded, Supervisor, make_targets

SAMPLE = 256  # pictures; the teacher has to look at them once more

_DEVIATIONS = 2.0  # above chance; a student that guesses is 2 above it in one of 44 runs


@torch.no_grad()
def check_agreement(
    student: Classifier,
    supervisors: Sequence[Supervisor | Recorded],
    batches: Batches,
    *,
    device: torch.device,
    precision: Precision = Precision.FP32,
) -> None:
    """Refuse a student that agrees with its teacher no better than chance.

    Chance is how often two judges agree who give each class as often as these do, but without
    looking at the pictures (as in Cohen's kappa): a student that names one class whatever it sees
    is no better.

    Args:
        student: in evaluation mode, as it will be used.
        supervisors: its teachers; several are averaged.
        batches: views of unlabelled pictures; the first of an epoch are looked at.
        device: where the towers are.
        precision: what the towers compute in.

    Raises:
        FailedRun: it does not.
    """
    mine, theirs, seen = [], [], 0
    for indices, images in batches.epoch(1):
        shown = len(gathered(indices))
        if shown == 0:
            continue
        on_device = images.to(device)
        with autocast(device, precision):
            logits = student.logits(on_device)  # (B, C)
        look = Look(1, indices.to(device))
        targets = make_targets(supervisors, on_device, look=look, precision=precision)
        mine.append(gathered(logits.argmax(dim=1)).cpu())
        theirs.append(gathered(targets.argmax(dim=1)).cpu())
        seen += shown
        if seen >= SAMPLE:
            break
    agreement, chance = _agreement(torch.cat(mine), torch.cat(theirs))
    least = chance + _DEVIATIONS * math.sqrt(chance * (1 - chance) / seen)
    if agreement < 1 and agreement <= least:
        raise FailedRun(
            f"the student agrees with its teacher on {100 * agreement:.1f}% of {seen} pictures,"
            f" and by chance it would on {100 * chance:.1f}%: this is not a model; lower"
            " student.lr, give it more epochs, or look at its teacher"
        )


def _agreement(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Return how often two judges chose the same (N,), and how often they would by chance."""
    same = float((first == second).double().mean())
    classes = int(torch.maximum(first, second).max()) + 1
    shares = [torch.bincount(one, minlength=classes).double() / len(one) for one in (first, second)]
    return same, float((shares[0] * shares[1]).sum())
