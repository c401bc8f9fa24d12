"""Sizes that a network can halve."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad


def mirrored(image: Tensor, multiple: int) -> Tensor:
    """The image `[..., y, x]` continued to whole multiples by its edge's mirror image: the noise goes on as it is."""
    height, width = (-n % multiple for n in image.shape[-2:])
    if not (height or width):
        return image
    mode = "reflect" if min(image.shape[-2:]) >= multiple else "replicate"
    return pad(image, (0, width, 0, height), mode)
