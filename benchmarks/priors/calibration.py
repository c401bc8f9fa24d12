"""Whether a prior's predicted noise has the right size: the slope of the true noise against it.

The posterior mean is the projection of the clean image on all functions of the noisy one, so that for it
`<noise, predicted> = <predicted, predicted>` over many images: a slope of one at every level.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from benchmarks.priors.images import unit_noise
from recon_core.priors.prior import Convention, Prior
from recon_core.training.figures import calibration


def levels(convention: Convention) -> list[float]:
    """From the lowest to the highest, in steps of about two."""
    steps = round(math.log2(convention.highest / convention.lowest))
    return [float(level) for level in np.geomspace(convention.lowest, convention.highest, steps + 1)]


def slope(prior: Prior, images: list[Tensor], level: float) -> float:
    """Regression through the origin, over all pixels and both channels of all images.

    Args:
        prior: to be tested.
        images: clean.
        level: of noise, in the prior's own units.
    """
    noise, predicted = [], []
    for seed, image in enumerate(images):
        clean, drawn = image / prior.convention.unit(image), level * unit_noise(image, seed)
        noise.append(drawn.flatten())
        predicted.append((clean + drawn - prior.denoise(clean + drawn, level)).flatten())
    return calibration(torch.cat(noise), torch.cat(predicted))
