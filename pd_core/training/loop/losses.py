"""Losses of the method, as pure functions of features and logits.

Shapes: B images, C classes, D the joint width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PromptSRCLoss:
    """The weighted terms of PromptSRC's loss; each is a scalar."""

    cross_entropy: Tensor  # of the prompted logits and the labels
    text: Tensor  # distance of the prompted text features from the frozen ones
    image: Tensor  # the same of the image features
    logits: Tensor  # divergence of the prompted predictions from the zero-shot ones

    @property
    def total(self) -> Tensor:
        """The sum that is minimised."""
        return self.cross_entropy + self.text + self.image + self.logits


def promptsrc(
    logits: Tensor,
    labels: Tensor,
    *,
    zero_shot_logits: Tensor,
    text: Tensor,
    frozen_text: Tensor,
    image: Tensor,
    frozen_image: Tensor,
    text_weight: float,
    image_weight: float,
    logits_weight: float,
) -> PromptSRCLoss:
    """Compute PromptSRC's self-regulating loss, by which the teacher is tuned.

    Cross entropy, plus terms that keep the prompted model near the frozen one (PromptSRC, ICCV
    2023, arXiv 2307.06948, equations 3 to 5; PromptKD, section 3.2).

    Args:
        logits: (B, C) of the prompted model.
        labels: (B,) class numbers.
        zero_shot_logits: (B, C) of the frozen model on the same views.
        text: (C, D) prompted text features, unit length.
        frozen_text: (C, D) frozen text features, unit length.
        image: (B, D) prompted image features, unit length.
        frozen_image: (B, D) frozen image features, unit length.
        text_weight: of the text term.
        image_weight: of the image term.
        logits_weight: of the divergence.

    Returns:
        The terms, weighted. The divergence is divided by B x C, not by B.
    """
    divergence = F.kl_div(
        logits.log_softmax(dim=1), zero_shot_logits.log_softmax(dim=1),
        reduction="sum", log_target=True,
    )  # fmt: skip
    return PromptSRCLoss(
        cross_entropy=F.cross_entropy(logits, labels),
        text=text_weight * F.l1_loss(text, frozen_text),
        image=image_weight * F.l1_loss(image, frozen_image),
        logits=logits_weight * divergence / logits.numel(),
    )


def distillation(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float, weight: float
) -> Tensor:
    """Compute the divergence of the student's predictions from the teacher's (equation 4).

    As in the published code it is divided by all B x C elements, so that the same weight has less
    effect with more classes.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C), no gradient flows into them.
        temperature: both logits are divided by it; its square scales the loss.
        weight: of the loss.

    Returns:
        weight x temperature^2 x KL(teacher || student) / (B x C), a scalar.
    """
    divergence = F.kl_div(
        (student_logits / temperature).log_softmax(dim=1),
        (teacher_logits.detach() / temperature).softmax(dim=1),
        reduction="sum",
    )
    return weight * temperature**2 * divergence / student_logits.numel()


def feature_distance(student: Tensor, teacher: Tensor, *, squared: bool, weight: float) -> Tensor:
    """Compute the distance of the student's image features from the teacher's.

    The paper's ablation of the distillation form compares it with the divergence of predictions.

    Args:
        student: (B, D), unit length.
        teacher: (B, D), unit length, no gradient flows into them.
        squared: squared instead of absolute differences.
        weight: of the loss.

    Returns:
        weight x the mean over all B x D elements, a scalar.
    """
    distance = F.mse_loss if squared else F.l1_loss
    return weight * distance(student, teacher.detach())


def ensemble(logits: Sequence[Tensor], *, by_confidence: bool, temperature: float) -> Tensor:
    """Average the predictions of several teachers into the logits of one.

    Args:
        logits: (B, C) of each teacher.
        by_confidence: weight each teacher, image by image, by its largest probability; otherwise
            all weights are equal.
        temperature: of the softmax before averaging.

    Returns:
        (B, C) logits whose softmax at `temperature` is the average.
    """
    predictions = torch.stack([(each / temperature).log_softmax(dim=1) for each in logits])
    if by_confidence:
        weights = predictions.amax(dim=2, keepdim=True).log_softmax(dim=0)  # (T, B, 1)
    else:
        weights = torch.tensor(-math.log(len(logits)))
    return temperature * (predictions + weights).logsumexp(dim=0)
