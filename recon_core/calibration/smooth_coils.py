"""Coil maps that are smooth and end in zero somewhere around the field of view, told by the sine transform."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad


class Smoothness:
    """A penalty on what varies fast in coil maps: `1/2 sum_k p_k |c_k|^2` of their sine transform c.

    Maps are told on a grid that is wider than the field of view, and are zero around that: full Dirichlet boundaries,
    of which the sine transform of the first kind, S, knows the eigenvectors. The precisions are
    `p = weight (sum over axes of (n / pi)^2 tau)^order / pixels`, with the eigenvalues
    `tau = 2 - 2 cos(pi k / (N + 1))` of the second difference on the N wide pixels: slow modes of k half cycles per
    field of view have `weight k^(2 order) / pixels`, on any matrix.

    `order=1, margin=0` is the penalty of paper 003 (eq. 9), squared differences of neighbours, `weight / pi^2` times.
    There maps vanish at the edge of the field of view even if the head goes on there, and spikes are cheap: for two
    heads whose image was known, such maps missed 5 to 7 % of the coil images, those of the defaults 2 to 3 %.
    """

    def __init__(
        self,
        shape: Sequence[int],
        weight: float,
        order: int = 3,
        margin: float = 0.125,
        device: torch.device | None = None,
    ) -> None:
        """Takes what the penalty is.

        Args:
            shape: of the field of view, (y, x).
            weight: about one over the variance of a mode of half a cycle, times the pixels.
            order: of the derivatives.
            margin: by which the grid is wider on either side, in fields of view.
            device: of the maps.

        Raises:
            ValueError: the weight is not above zero or not finite, the order below one, or the margin negative.
        """
        if not (0 < weight < math.inf and order >= 1 and margin >= 0):
            raise ValueError(
                f"expected a weight above 0, an order of at least 1 and a margin of at least 0, "
                f"got {weight:g}, {order} and {margin:g}"
            )
        self._margins = [round(margin * n) for n in shape]
        wide = [n + 2 * m for n, m in zip(shape, self._margins, strict=True)]
        self._sines = [_sines(n).to(device) for n in wide]
        y, x = ((n / math.pi) ** 2 * _eigenvalues(w).to(device) for n, w in zip(shape, wide, strict=True))
        self.precisions = weight * (y[:, None] + x) ** order / math.prod(shape)

    def energy(self, wide: Tensor) -> Tensor:
        """The penalty of each wide map `[..., y, x]`."""
        return (self._precisions(wide) * self.transform(wide).abs().square()).sum((-2, -1)) / 2

    def proximal(self, wide: Tensor, step: float | Tensor) -> Tensor:
        """The minimiser u of `step penalty(u) + |u - s|^2 / 2` (paper 003, eq. 11).

        Args:
            wide: s, `[..., y, x]` on the wide grid.
            step: one for all, or what broadcasts with the maps.
        """
        return self.transform(self.transform(wide) / (1 + step * self._precisions(wide)))

    def transform(self, wide: Tensor) -> Tensor:
        """The orthonormal sine transform of the last two axes, which is its own inverse."""
        along_y, along_x = self._sines
        return _between(along_y, along_x, wide)

    def slow(self, precision: float) -> SlowModes:
        """The modes along either axis that are not all held more strongly than by a precision, but at least one."""
        counts = [max(1, int((least < precision).sum())) for least in (self.precisions[:, 0], self.precisions[0])]
        along_y, along_x = (sines[:count] for sines, count in zip(self._sines, counts, strict=True))
        return SlowModes(self.precisions[: counts[0], : counts[1]], along_y, along_x, tuple(self._margins))

    def cropped(self, wide: Tensor) -> Tensor:
        """From the wide grid to the field of view."""
        y, x = self._margins
        return wide[..., y : wide.shape[-2] - y, x : wide.shape[-1] - x]

    def padded(self, maps: Tensor) -> Tensor:
        """From the field of view to the wide grid, zero around it: the adjoint of `cropped`."""
        y, x = self._margins
        return pad(maps, (x, x, y, y))

    def _precisions(self, wide: Tensor) -> Tensor:
        return self.precisions.to(wide.real.dtype)


@dataclass(frozen=True)
class SlowModes:
    """The first sine transforms c of coil maps along either axis: all that matters where the others are held at zero.

    They are few, which makes all that is done with them much quicker than on the wide grid.

    Attributes:
        precisions: of the penalty, `[modes along y, modes along x]`.
    """

    precisions: Tensor
    _along_y: Tensor
    _along_x: Tensor
    _margins: tuple[int, ...]

    def maps(self, modes: Tensor) -> Tensor:
        """On the field of view, `[..., y, x]`, of modes `[..., modes along y, modes along x]`."""
        along_y, along_x = self._inside
        return _between(along_y.T, along_x, modes)

    def adjoint(self, maps: Tensor) -> Tensor:
        """Of `maps`."""
        along_y, along_x = self._inside
        return _between(along_y, along_x.T, maps)

    def wide(self, modes: Tensor) -> Tensor:
        """Maps on the wide grid."""
        return _between(self._along_y.T, self._along_x, modes)

    @property
    def _inside(self) -> tuple[Tensor, Tensor]:
        along_y, along_x = (
            sines[:, margin : sines.shape[1] - margin]
            for sines, margin in zip((self._along_y, self._along_x), self._margins, strict=True)
        )
        return along_y, along_x


def _between(left: Tensor, right: Tensor, complex_values: Tensor) -> Tensor:
    """left values right, with real matrices: real and imaginary part by themselves."""
    parts = torch.view_as_real(complex_values.resolve_conj()).movedim(-1, 0)
    product = left.to(parts.dtype) @ parts @ right.to(parts.dtype)
    return torch.view_as_complex(product.movedim(0, -1).contiguous())


def _sines(n: int) -> Tensor:
    """sqrt(2 / (n + 1)) sin(pi j k / (n + 1)) for j, k = 1 ... n: symmetric and orthogonal."""
    k = torch.arange(1, n + 1, dtype=torch.float64)
    return math.sqrt(2 / (n + 1)) * torch.sin(math.pi / (n + 1) * k[:, None] * k)


def _eigenvalues(n: int) -> Tensor:
    """Of the second difference with zeros around it."""
    return 2 - 2 * torch.cos(math.pi / (n + 1) * torch.arange(1, n + 1, dtype=torch.float64))
