"""SGD for CPUs and GPUs."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import SGD


def make_sgd(
    parameters: Sequence[nn.Parameter],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    fused: bool | None = None,
) -> SGD:
    """Make plain SGD.

    Args:
        parameters: all that is trained.
        lr: learning rate.
        momentum: factor of the earlier gradients.
        weight_decay: factor of the L2 term.
        fused: compute a step by one kernel, so that a step under loss scaling does not wait for
            the device to learn whether its gradients are finite; None to do so on a GPU.
    """
    if fused is None:
        fused = any(parameter.is_cuda for parameter in parameters)
    optimizer = SGD(
        parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=fused or None
    )
    if fused and momentum:
        # Made by a first step that is skipped for its gradients, they would not be initialised.
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer
