"""Complex images to denoise: held-out heads, and weightings that no training saw."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon_core.priors.prior import Convention
from recon_core.simulation import smooth_phase
from recon_core.training.image_files import image_files, slices_of

UNIT = Convention("percentile99", 0.005, 160.0)
FIELD_OF_VIEW_M = 0.24  # only tells how fast the phase varies


@dataclass(frozen=True)
class Sample:
    """A clean image `[y, x]`, whose magnitude has a 99th percentile of one, and the same with noise.

    `sigma` is the standard deviation of the noise per real channel.
    """

    clean: Tensor
    noisy: Tensor
    sigma: float


def samples(images: list[Tensor], sigma: float) -> list[Sample]:
    """Each image with its own noise, which is the same in every call but for its level."""
    return [Sample(image, image + sigma * unit_noise(image, seed), sigma) for seed, image in enumerate(images)]


def unit_noise(image: Tensor, seed: int) -> Tensor:
    """White, of unit variance in the real and in the imaginary part."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.view_as_complex(torch.randn(*image.shape, 2, generator=generator))


def held_out(folder: Path, count: int) -> list[Tensor]:
    """Slices spread evenly through all that the folder holds, each with a smooth phase."""
    return _with_phase(_spread([image for path in image_files([folder]) for image in slices_of(path)], count))


def other_contrasts(folder: Path, count: int) -> dict[str, list[Tensor]]:
    """Two heads in `count` slices each, with a smooth phase, and one slice with the phase that it was measured with.

    Args:
        folder: with train/, b0maps/ and cases/.
        count: of slices.
    """
    gradient_echo = np.stack(list(slices_of(folder / "train/ge3t_gre_head_mag.nii")))
    # Arrays of these files begin with x.
    echo_planar = np.load(folder / "b0maps/sdcflows_topup_head.npz")["mag"].T
    brain = np.load(folder / "cases/brain_16ch/brain_invivo_local16ch_maps.npz")["image_combined"].T
    return {
        "gradient echo head": _with_phase(_spread(_filled(gradient_echo), count)),
        "echo planar head": _with_phase(_spread(_filled(echo_planar), count)),
        "brain with its own phase": [_scaled(torch.from_numpy(brain.copy()))],
    }


def _spread(slices: list[NDArray[np.generic]], count: int) -> list[NDArray[np.generic]]:
    return [slices[round(i)] for i in np.linspace(0, len(slices) - 1, count)]


def _filled(stack: NDArray[np.generic]) -> list[NDArray[np.generic]]:
    """Without the slices that training would leave out as well: under 5 % of them brighter than a tenth."""
    bright = max(np.percentile(image, 99) for image in stack)
    return [image for image in stack if np.mean(image > bright / 10) >= 0.05]


def _with_phase(magnitudes: Iterable[NDArray[np.generic]]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = [torch.from_numpy(magnitude.astype(np.float32)) for magnitude in magnitudes]
    return [_scaled(image * smooth_phase(_positions(image), generator)) for image in images]


def _positions(image: Tensor) -> Tensor:
    """Of each pixel, `[y, x, axis]` in metres."""
    lines = [torch.linspace(-0.5, 0.5, n, dtype=torch.float64) * FIELD_OF_VIEW_M for n in image.shape]
    return torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1)


def _scaled(image: Tensor) -> Tensor:
    return image / UNIT.unit(image)
