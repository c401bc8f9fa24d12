"""The images that a prior learns from: scaled, and split into those to train on and those to select by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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

    def split(self, held: slice) -> tuple[Corpus, Corpus]:
        """All but a run of images, and these."""
        first, last, _ = held.indices(len(self))
        return self._run(0, first) + self._run(last, len(self)), self._run(first, last)

    def _run(self, first: int, last: int) -> Corpus:
        return Corpus(self.images[first:last], self.noise[first:last])


def hold_out(corpora: Sequence[Corpus]) -> tuple[Corpus, Corpus]:
    """Images to train on, and to select by: the twentieth of the files in their middle, at least one of them.

    Files are kept whole, because slices of one volume look alike, and the three cuts of a volume show the same voxels.
    Of a single file the twentieth of the slices in its middle is held out, at least one: the ends of a volume show
    little of it, and a run has only two neighbours that are trained on. These are not independent of it, so that the
    figures come out better than those of another head.

    Args:
        corpora: one of each file.
    """
    filled = [corpus for corpus in corpora if len(corpus)]
    if len(filled) == 1:
        return filled[0].split(_middle(len(filled[0])))
    held = _middle(len(filled))
    return joined(filled[: held.start] + filled[held.stop :]), joined(filled[held])


def joined(corpora: Sequence[Corpus]) -> Corpus:
    """One after the other."""
    return sum(corpora, Corpus([]))


def _middle(count: int) -> slice:
    """A twentieth, at least one."""
    held = max(1, round(count / 20))
    first = (count - held) // 2
    return slice(first, first + held)


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
        raise ImageFileError(
            f"expected an object that fills {_LEAST_FILLED:.0%} of a slice and more, found only emptier slices in "
            + ", ".join(map(str, files[:3]))
            + (f" and {len(files) - 3} more files" if len(files) > 3 else "")
        )
    return corpora


def _read(path: Path, convention: Convention, key: str | None, noise: float | None) -> Corpus:
    slices = [np.ascontiguousarray(image) for image in slices_of(path, key)]
    try:
        return _scaled(slices, convention, noise)
    except ValueError as error:
        raise ImageFileError(f"{path}: {error}") from error


def _scaled(slices: list[NDArray[np.generic]], convention: Convention, noise: float | None) -> Corpus:
    bright = _brightness(slices)
    kept = [_tensor(image) for image in slices if _filled(image, bright) >= _LEAST_FILLED]
    if noise != 0.0 and not all(image.is_complex() for image in kept):
        raise ValueError("expected complex images, got magnitudes, whose noise is not Gaussian")
    units = [convention.unit(image) for image in kept]
    unit_images = [image / unit for image, unit in zip(kept, units, strict=True)]
    if noise is None:
        levels = torch.tensor([estimate_noise(image) for image in unit_images])
    else:
        levels = noise / torch.tensor([float(unit) for unit in units])
    images = [_half(image) for image in unit_images]
    if not all(bool(torch.isfinite(image).all()) for image in images):
        raise ValueError(f"some pixels are over {torch.finfo(torch.half).max:g} times as bright as the others")
    return Corpus(images, levels)


def _brightness(slices: list[NDArray[np.generic]]) -> float:
    """The 99th percentile of the brightest slice."""
    if not all(np.isfinite(image).all() for image in slices):
        raise ValueError("holds values that are not finite")
    greatest = max((float(np.abs(image).max()) for image in slices), default=0.0)
    if greatest > float(np.finfo(np.float32).max):
        raise ValueError(f"expected values of single precision, got values up to {greatest:g}")
    bright = max((float(np.percentile(np.abs(image), 99)) for image in slices), default=0.0)
    lowest = min((float(image.min()) for image in slices if not np.iscomplexobj(image)), default=0.0)
    if lowest < -bright / 2:  # what is less below zero, interpolation may have left
        raise ValueError(f"expected magnitudes or complex images, got values down to {lowest:g}")
    return bright


def _filled(image: NDArray[np.generic], bright: float) -> float:
    """Share of the pixels that are brighter than a tenth of `bright`."""
    return float(np.mean(np.abs(image) > bright / 10)) if bright > 0 else 0.0


def _tensor(image: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(image.astype(np.complex64 if np.iscomplexobj(image) else np.float32))


def _half(image: Tensor) -> Tensor:
    return (torch.view_as_real(image) if image.is_complex() else image).half()
