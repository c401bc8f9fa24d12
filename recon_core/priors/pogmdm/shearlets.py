"""The nonseparable shearlets of PoGMDM, from two learned building blocks, for images of any size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import conv1d

SHEARS = (-2, -1, 0, 1, 2)
FILTERS = 20

# The usual start of a shearlet system (Kutyniok, Lim, Reisenhofer, ShearLab 3D, ACM Trans Math Softw 2016): the
# maximally flat low-pass filter, and the coefficients of the maximally flat diamond (da Cunha, Zhou, Do, IEEE Trans
# Image Process 15:3089, 2006), a quarter of it.
_FLAT = (0.0104933261758410, -0.0263483047033631, -0.0517766952966370, 0.276348304703363, 0.582566738241592)
_DIAMOND = ((0, -5, 0, -3, 0), (-5, 0, 52, 0, 34), (0, 52, 0, -276, 0), (-3, 0, -276, 0, 1454), (0, 34, 0, 1454, 0))


def flat_low_pass() -> Tensor:
    """Where the low-pass filter starts, `[9]`: maximally flat, of sum one."""
    half = torch.tensor(_FLAT, dtype=torch.float64)
    return torch.cat([half, half[:-1].flip(0)])


def fan_filter() -> Tensor:
    """Where the directional filter starts, `[17, 17]`: the maximally flat fan, its magnitudes of sum one.

    A five-tap low-pass filter through the transform of McClellan, whose variable is the diamond of order four;
    modulation along the columns makes a fan of the diamond.
    """
    quarter = torch.tensor(_DIAMOND, dtype=torch.float64) / 2**12
    left = torch.cat([quarter, quarter[:, :-1].flip(1)], dim=1)
    diamond = torch.cat([left, left[:-1].flip(0)])
    root = math.sqrt(0.5)
    outer, inner, centre = root * (1 - math.sqrt(2)) / 4, root / 2, 1 + root * (1 - math.sqrt(2)) / 2
    # Chebyshev: cos w becomes the diamond D, cos 2w becomes 2 D * D - 1.
    squared = torch.nn.functional.conv2d(diamond[None, None], diamond[None, None], padding=8)[0, 0]
    low_pass = 4 * outer * squared
    low_pass[4:13, 4:13] += 2 * inner * diamond
    low_pass[8, 8] += centre - 2 * outer
    fan = low_pass * (-1.0) ** torch.arange(-8, 9)
    return fan / fan.abs().sum()


@dataclass(frozen=True)
class Frequencies:
    """Angular frequencies, in radians per pixel, at the points of `torch.fft.rfft2`.

    Args:
        along_y: of the rows.
        along_x: of the columns, `[x // 2 + 1]`.
    """

    along_y: Tensor
    along_x: Tensor

    @staticmethod
    def of(size: tuple[int, int], like: Tensor, grid: tuple[int, int] | None = None) -> Frequencies:
        """Of an image of `(y, x)` pixels; those alone that a coarser grid of the same extent can hold, if given."""
        (rows, columns), options = grid or size, {"dtype": like.dtype, "device": like.device}
        along_y = 2 * math.pi * rows / size[0] * torch.fft.fftfreq(rows, **options)
        return Frequencies(along_y, 2 * math.pi * columns / size[1] * torch.fft.rfftfreq(columns, **options))

    def __mul__(self, factor: float) -> Frequencies:
        return Frequencies(factor * self.along_y, factor * self.along_x)


def spectra(low_pass: Tensor, fan: Tensor, frequencies: Frequencies) -> Tensor:
    """Frequency responses of the shearlets.

    Two cones of two scales (the coarse one first) of five shears. A shearlet is the product of a wavelet along the
    columns, at one of two scales, and the fan, stretched fourfold along the rows and smoothed, which is sheared on a
    grid of half the spacing and brought back by the low-pass filter. The second cone is the first one transposed. All
    of this is done to the frequencies instead of to the pixels: filters are exact on any grid, also on one that is
    smaller than they are (89 x 137 pixels at most), where they wrap around. Learned filters are not symmetric:
    convolutions along a chain are correlations, as in the published model.

    Args:
        low_pass: taps h, `[9]`.
        fan: directional filter P, `[17, 17]`.
        frequencies: where.

    Returns:
        Complex `[20, y, x // 2 + 1]`.
    """
    first = _cone(low_pass, fan, frequencies.along_y, frequencies.along_x)
    second = _cone(low_pass, fan, frequencies.along_x, frequencies.along_y)
    return torch.cat([first, second.mT])


def coarse_spectrum(low_pass: Tensor, frequencies: Frequencies) -> Tensor:
    """Frequency response `[y, x // 2 + 1]` of what the two scales leave over: the low-pass filter of both scales."""
    taps = _coarser(low_pass, low_pass)
    return _response(taps, frequencies.along_y)[:, None] * _response(taps, frequencies.along_x)


def _cone(low_pass: Tensor, fan: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Shearlets `[10, rows, columns]` at angular frequencies along the rows' axis and along the columns' axis."""
    shear = torch.tensor(SHEARS, dtype=low_pass.dtype, device=low_pass.device)[:, None, None]
    # The fan, stretched along the rows and sheared: its frequency is 4 rows - 2 shear columns.
    position = _positions(17, rows)
    along_columns = fan.to(low_pass.dtype) + 0j
    turned = _phase(-2 * shear * position[:, None] * columns) * (along_columns @ _phase(position[:, None] * columns))
    fans = _phase(4 * rows[:, None] * position) @ turned
    # Its smoothing has the frequency rows - shear (columns / 2 + 0 or pi): the finer grid folds back onto the coarse.
    taps = _coarser(low_pass, low_pass)
    position = _positions(25, rows)
    halved = torch.stack([columns / 2, columns / 2 + math.pi])
    pass_band = _response(low_pass, halved).abs() ** 2
    turns = _phase(shear * position[:, None] * halved[:, None, None])
    smoothing = _phase(-rows[:, None] * position) @ (taps[:, None] * pass_band[:, None, None] * turns).sum(0)
    high_pass = low_pass * (-1.0) ** _positions(9, low_pass)
    wavelets = torch.stack([_response(_coarser(high_pass, low_pass), columns), _response(high_pass, columns)]).conj()
    return (wavelets[:, None, None] * (fans * smoothing)).flatten(0, 1)


def _coarser(taps: Tensor, low_pass: Tensor) -> Tensor:
    """The filter one scale up, `[25]`: stretched twofold, then smoothed."""
    stretched = torch.zeros(17, dtype=taps.dtype, device=taps.device)
    stretched[::2] = taps
    return conv1d(stretched[None, None], low_pass[None, None], padding=8)[0, 0]


def _response(taps: Tensor, frequency: Tensor) -> Tensor:
    """Frequency response of centred taps at angular frequencies of any shape."""
    return (_phase(frequency[..., None] * _positions(len(taps), taps)) * taps).sum(-1)


def _positions(taps: int, like: Tensor) -> Tensor:
    return torch.arange(taps, dtype=like.dtype, device=like.device) - taps // 2


def _phase(angle: Tensor) -> Tensor:
    return torch.polar(torch.ones_like(angle), -angle)
