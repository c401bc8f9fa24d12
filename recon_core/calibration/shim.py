"""A field that is mostly offset and gradients, found by how sharp it makes the image: where a search may begin."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recon_core.density import pipe_menon
from recon_core.operators.sampling import Sampling

_TURNS_BETWEEN_IMAGES = 0.15
_TURNS_OF_SEARCH = 0.46
"""Steps in frequency, as turns of phase from the first sample to the last: of images, and of the grid."""

_HALVINGS = 5
"""Of the step, until the search ends."""

_FOLLOWED = 400
"""Of the grid, how many are where the search goes on: the right one may lie between its points. With 64, it missed two
more of the shims of a small head."""

MOST_PLANES = 50000
"""On the grid, where the limit makes ten turns from the first sample to the last: a millisecond each on a CPU, for
128 x 128 pixels, and 139 images in memory."""


@dataclass(frozen=True)
class Shim:
    """An offset and two gradients.

    Attributes:
        offset_hz: at the centre of the field of view, which is the pixel N // 2.
        y_hz: gradient along y, in Hz per field of view.
        x_hz: along x.
        gain: by which the image is sharper than without a field, relative to it, from 0.
    """

    offset_hz: float
    y_hz: float
    x_hz: float
    gain: float

    def field(self, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """Hz, `[y, x]`."""
        y, x = ((torch.arange(n, device=device) - n // 2) / n for n in shape)
        return self.offset_hz + self.y_hz * y[:, None] + self.x_hz * x


def sharpest_shim(sampling: Sampling, kspace: Tensor, times: Tensor, limit_hz: float) -> Shim:
    """The sum of an offset and two gradients with which the image is sharpest.

    The residual of a spiral hardly tells a far shim from none, but its image does. The samples are demodulated by every
    frequency of a range once (Noll et al., IEEE Trans Med Imaging 11:629, 1992), and each candidate takes every pixel
    from the image of its own frequency; sharp is what has a large mean squared gradient over the mean square. All
    combinations on a grid are tried, then the neighbours of the best ones in ever smaller steps.

    Aliasing is sharp, too: interleaves that are far too few mislead it. So may, rarely, seven turns between the limit
    and zero, where there is a wrong plane that is nearly as sharp.

    Args:
        sampling: of a trajectory `[2, shot, sample]`.
        kspace: `[coil, shot, sample]`.
        times: in seconds from when the centre of k-space is visited, `[shot, sample]`.
        limit_hz: the shim lies within plus and minus this, but for a tenth of an elliptic object.

    Raises:
        ValueError: the image shows no object, the times are all the same, or the limit is so far that there are more
            candidates than MOST_PLANES.
    """
    duration = float(times.max() - times.min())
    if not duration > 0:
        raise ValueError("all samples have the same time")
    step_hz = _TURNS_OF_SEARCH / duration
    _require_few(limit_hz, step_hz, duration)
    count = 2 * math.ceil(limit_hz * duration / _TURNS_BETWEEN_IMAGES) + 1
    frequencies = torch.linspace(-limit_hz, limit_hz, count).tolist()
    views = _Views(demodulated(sampling, kspace, times, frequencies), limit_hz, step_hz / 2**_HALVINGS)
    step = 2**_HALVINGS
    best = views.sharpest(views.planes(step), _FOLLOWED)
    while step > 1:
        step //= 2
        best = views.sharpest({views.climbed(plane, step) for plane in best}, max(len(best) // 4, 1))
    return views.shim(best[0])


def demodulated(sampling: Sampling, kspace: Tensor, times: Tensor, frequencies_hz: Sequence[float]) -> Tensor:
    """Root sums of squares of coil images that are right where the field has each frequency, `[frequency, y, x]`."""
    weighted = pipe_menon(sampling) * kspace
    ones = torch.ones_like(times)
    turned = (weighted * torch.polar(ones, 2 * math.pi * frequency * times) for frequency in frequencies_hz)
    return torch.stack([torch.linalg.vector_norm(sampling.adjoint(samples), dim=0) for samples in turned])


Plane = tuple[int, int, int]
"""Offset in the middle of the object, and by how much more the field is at its ends along y and x, in last steps."""

ZERO: Plane = (0, 0, 0)

_NINE_TENTHS = 0.687
"""A line this part of the way from an ellipse's middle to its end has a tenth of its area beyond."""


def _require_few(limit_hz: float, step_hz: float, duration: float) -> None:
    """By the volume of the double cone in which they lie, before any is made."""
    planes = 2 * math.pi / 3 * (limit_hz / step_hz) ** 3 / _NINE_TENTHS**2
    if planes > MOST_PLANES:
        highest = limit_hz * (MOST_PLANES / planes) ** (1 / 3)
        raise ValueError(
            f"{limit_hz:g} Hz in {1e3 * duration:.3g} ms make {planes:.0f} candidates, more than {MOST_PLANES}; "
            f"a limit of {math.floor(highest)} Hz makes fewer"
        )


@dataclass(frozen=True)
class _Extent:
    """Where the object is.

    Attributes:
        shape: of the image.
        middle: in pixels, (y, x).
        half: from there to its end, in pixels, (y, x).
    """

    shape: tuple[int, int]
    middle: tuple[float, float]
    half: tuple[float, float]

    @classmethod
    def of(cls, image: Tensor) -> _Extent:
        """By the moments of what signal there is `[y, x]`, which spread less in a wrong field than its outline does.

        Of an ellipse that is bright all over, the half axes are twice the standard deviations.
        """
        energy = image.square()
        (y, y_half), (x, x_half) = (_middle_and_half(energy.sum(1 - axis)) for axis in (0, 1))
        return cls((image.shape[0], image.shape[1]), (y, x), (y_half, x_half))

    def shim(self, middle_hz: float, ends_hz: Sequence[float], gain: float) -> Shim:
        """With a field in the middle, and so much more at the ends along y and x."""
        y_hz, x_hz = (hz / half * n for hz, half, n in zip(ends_hz, self.half, self.shape, strict=True))
        y, x = ((n // 2 - middle) / n for n, middle in zip(self.shape, self.middle, strict=True))
        return Shim(middle_hz + y_hz * y + x_hz * x, y_hz, x_hz, gain)


def _middle_and_half(energy: Tensor) -> tuple[float, float]:
    weights, pixels = energy / energy.sum(), torch.arange(len(energy), device=energy.device)
    middle = (weights * pixels).sum()
    half = 2 * (weights * (pixels - middle).square()).sum().sqrt()
    if not half > 0:
        raise ValueError("the image shows no object")
    return float(middle), float(half)


_WAYS = list(itertools.product((0, -1, 1), repeat=3))
"""To stay comes first, so that what is as sharp does not move."""


class _Views:
    """Images of all frequencies, as what a plane makes of them."""

    def __init__(self, images: Tensor, limit_hz: float, unit_hz: float) -> None:
        self._images, self._limit_hz, self._unit_hz = images, limit_hz, unit_hz
        self._extent = _Extent.of(images[len(images) // 2])
        self._known: dict[Plane, float] = {}

    def planes(self, step: int) -> list[Plane]:
        """All of a grid that lie within the limit, flat ones among them."""
        most = int(self._limit_hz / (step * self._unit_hz))
        grid = range(-most * step, most * step + 1, step)
        return [plane for plane in itertools.product(grid, grid, grid) if self._is_within(plane)]

    def shim(self, plane: Plane) -> Shim:
        """The same in Hz."""
        offset, *ends = (self._unit_hz * steps for steps in plane)
        return self._extent.shim(offset, ends, self.sharpness(plane) / self.sharpness(ZERO) - 1)

    def sharpness(self, plane: Plane) -> float:
        """Mean squared gradient over mean square, of all of the image: what leaves the object counts as blur, too."""
        if plane not in self._known:
            image = self._composed(plane)
            steep = image.diff(dim=0).square().sum() + image.diff(dim=1).square().sum()
            self._known[plane] = float(steep / image.square().sum())
        return self._known[plane]

    def sharpest(self, planes: Iterable[Plane], count: int) -> list[Plane]:
        """So many of them."""
        return heapq.nlargest(count, planes, key=self.sharpness)

    def climbed(self, plane: Plane, step: int) -> Plane:
        """The sharpest within the limit that is reached by steps along and across the axes."""
        while True:
            around = [(plane[0] + step * o, plane[1] + step * y, plane[2] + step * x) for o, y, x in _WAYS]
            best = max(filter(self._is_within, around), key=self.sharpness)
            if best == plane:
                return plane
            plane = best

    def _is_within(self, plane: Plane) -> bool:
        offset, y, x = plane
        return (abs(offset) + _NINE_TENTHS * math.hypot(y, x)) * self._unit_hz <= self._limit_hz

    def _composed(self, plane: Plane) -> Tensor:
        """Each pixel between the images of the two frequencies next to its own."""
        offset, *ends = (self._unit_hz * steps for steps in plane)
        field_hz = self._extent.shim(offset, ends, 0.0).field(self._images.shape[1:], self._images.device)
        last = len(self._images) - 1
        place = ((field_hz / self._limit_hz + 1) * (last / 2)).clamp(0, last)
        below = place.long().clamp(max=last - 1)
        lower, upper = (torch.gather(self._images, 0, at[None])[0] for at in (below, below + 1))
        return torch.lerp(lower, upper, place - below)
