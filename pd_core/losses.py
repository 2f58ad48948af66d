"""The two losses of the method, as pure functions of features and logits.

Shapes: B images, C classes, D the joint width.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PromptSRCLoss:
    """The weighted terms of PromptSRC's loss; each is a scalar.

    Attributes:
        cross_entropy: of the prompted logits against the few labels.
        text: distance of the prompted text features from the frozen ones.
        image: distance of the prompted image features from the frozen ones.
        logits: divergence of the prompted from the zero-shot predictions.
    """

    cross_entropy: Tensor
    text: Tensor
    image: Tensor
    logits: Tensor

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
    text_weight: float = 25.0,
    image_weight: float = 10.0,
    logits_weight: float = 1.0,
) -> PromptSRCLoss:
    """Compute the self-regulating loss that tunes the teacher.

    Cross entropy, plus what keeps the prompted model near the frozen one
    (PromptSRC, ICCV 2023, arXiv 2307.06948, equations 3 to 5; PromptKD takes
    its teacher from there, section 3.2).

    Args:
        logits: (B, C) of the prompted model.
        labels: (B,) class numbers.
        zero_shot_logits: (B, C) of the frozen model on the same views.
        text: (C, D) prompted text features, unit length.
        frozen_text: (C, D) frozen text features, unit length.
        image: (B, D) prompted image features, unit length.
        frozen_image: (B, D) frozen image features, unit length.
        text_weight: weight of the text term, 25 as published.
        image_weight: weight of the image term, 10 as published.
        logits_weight: weight of the divergence, 1 as published.

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
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    weight: float = 1000.0,
) -> Tensor:
    """Compute the divergence of the student's predictions from the teacher's.

    Paper, equation 4. As in the published code it is divided by all B x C
    elements, so with more classes the same weight pulls less.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C), no gradient flows into them.
        temperature: both logits are divided by it; its square scales the loss.
        weight: 1000 as published (base-to-novel).

    Returns:
        weight x temperature^2 x KL(teacher || student) / (B x C), a scalar.
    """
    divergence = F.kl_div(
        (student_logits / temperature).log_softmax(dim=1),
        (teacher_logits.detach() / temperature).softmax(dim=1),
        reduction="sum",
    )
    return weight * temperature**2 * divergence / student_logits.numel()
