"""The images that a prior learns from: scaled, and split into those to train on and those to select by."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from recon_core.priors.prior import Convention
from recon_core.training.image_files import ImageFileError, image_files, slices_of
from recon_core.training.noise_level import estimate_noise

# Slices of which less is brighter than a tenth of the file's brightest slice hold too little to learn from.
_LEAST_FILLED = 0.05


class Corpus:
    """Images on the unit scale of a convention, kept in half precision.

    Args:
        images: each float16, magnitudes `[y, x]` or real and imaginary part `[y, x, 2]`.
        noise: standard deviation per real channel of the noise in each image, `[n]`; zero where they count as clean.
    """

    def __init__(self, images: list[Tensor], noise: Tensor | None = None) -> None:
        self.images = images
        self.noise = torch.zeros(len(images)) if noise is None else noise

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        """One image `[y, x]` in single precision."""
        image = self.images[index].float()
        return torch.view_as_complex(image) if image.ndim == 3 else image

    def __add__(self, other: Corpus) -> Corpus:
        """Both, one after the other."""
        return Corpus(self.images + other.images, torch.cat([self.noise, other.noise]))

    def split(self, fraction: float) -> tuple[Corpus, Corpus]:
        """All but the last `fraction`, and the last: neighbours in a volume look alike, so they stay together."""
        kept = round(len(self) * (1 - fraction))
        first, last = slice(None, kept), slice(kept, None)
        return Corpus(self.images[first], self.noise[first]), Corpus(self.images[last], self.noise[last])


def read_corpus(
    paths: Iterable[Path], convention: Convention, key: str | None = None, noise: float | None = 0.0
) -> list[Corpus]:
    """The slices of each file, without the empty ones.

    Args:
        paths: files and folders.
        convention: of the prior to be trained.
        key: the one array to take of npz files.
        noise: standard deviation per real channel of the noise in the files, in their units; None estimates it from
            each image, which must be complex.

    Raises:
        ImageFileError: nothing to learn from, a file that cannot be read, or noisy magnitudes.
    """
    files = image_files(paths)
    corpora = [_read(path, convention, key, noise) for path in tqdm(files, desc="read", disable=len(files) < 2)]
    if not any(len(c) for c in corpora):
        raise ImageFileError(f"expected images with an object in them, found only empty slices in {len(files)} files")
    return corpora


def _read(path: Path, convention: Convention, key: str | None, noise: float | None) -> Corpus:
    slices = [np.ascontiguousarray(image) for image in slices_of(path, key)]
    bright = _brightness(slices, path)
    kept = [_tensor(image) for image in slices if _filled(image, bright) >= _LEAST_FILLED]
    if noise != 0.0 and not all(image.is_complex() for image in kept):
        raise ImageFileError(f"{path}: expected complex images, got magnitudes, whose noise is not Gaussian")
    units = [convention.unit(image) for image in kept]
    unit_images = [image / unit for image, unit in zip(kept, units, strict=True)]
    if noise is None:
        levels = torch.tensor([_estimated(image, path) for image in unit_images])
    else:
        levels = noise / torch.tensor([float(unit) for unit in units])
    images = [_half(image) for image in unit_images]
    if not all(bool(torch.isfinite(image).all()) for image in images):
        raise ImageFileError(
            f"{path}: some pixels are over {torch.finfo(torch.half).max:g} times as bright as the others"
        )
    return Corpus(images, levels)


def _brightness(slices: list[NDArray[np.generic]], path: Path) -> float:
    """The 99th percentile of the brightest slice."""
    if not all(np.isfinite(image).all() for image in slices):
        raise ImageFileError(f"{path}: holds values that are not finite")
    bright = max((float(np.percentile(np.abs(image), 99)) for image in slices), default=0.0)
    lowest = min((float(image.min()) for image in slices if not np.iscomplexobj(image)), default=0.0)
    if lowest < -bright / 2:  # what is less below zero, interpolation may have left
        raise ImageFileError(f"{path}: expected magnitudes or complex images, got values down to {lowest:g}")
    return bright


def _estimated(image: Tensor, path: Path) -> float:
    try:
        return estimate_noise(image)
    except ValueError as error:
        raise ImageFileError(f"{path}: {error}") from error


def _filled(image: NDArray[np.generic], bright: float) -> float:
    """Share of the pixels that are brighter than a tenth of `bright`."""
    return float(np.mean(np.abs(image) > bright / 10)) if bright > 0 else 0.0


def _tensor(image: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(image.astype(np.complex64 if np.iscomplexobj(image) else np.float32))


def _half(image: Tensor) -> Tensor:
    return (torch.view_as_real(image) if image.is_complex() else image).half()
