"""From pixels to CLIP's input."""

import torch
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the pictures CLIP was trained on, per channel
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def normalised(pixels: Tensor) -> Tensor:
    """Turn pixels (B, H, W, 3) of uint8 into CLIP's input (B, 3, H, W) of fp32."""
    values = pixels.permute(0, 3, 1, 2)
    values = values.to(torch.float32, memory_format=torch.contiguous_format)
    mean = torch.tensor(CLIP_MEAN, device=pixels.device).view(3, 1, 1)
    std = torch.tensor(CLIP_STD, device=pixels.device).view(3, 1, 1)
    return values.div_(255).sub_(mean).div_(std)
