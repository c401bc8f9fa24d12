"""Off-resonance as a short sum: exp(-2 pi i psi t) ~ sum_l w_l(t) c_l(psi), for all psi of a range of frequencies.

The functions of time w_l weigh samples, the coefficients c_l weigh pixels, so that a Fourier transform fits between
them. Nothing here knows of a field map until `coefficients` is asked about one: what is built from the functions of
time serves every map of the range.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
import scipy.linalg
import torch
from numpy.polynomial import chebyshev
from numpy.typing import NDArray
from torch import Tensor

DEFAULT_ERROR = 1e-3
"""Of the low-rank factorisation, relative: root mean square over the samples at the worst frequency."""

LARGEST_BANDWIDTH = 64.0
"""Range of frequencies times duration of the samples, beyond which a model is slow and its field map a mistake."""

_OUTSIDE = 1e-3  # Hz by which a field may leave the range: rounding


class TimeFunctions(ABC):
    """A factorisation of exp(-2 pi i psi t).

    Attributes:
        weights: w, complex `[term, shot, sample]`.
        low_hz, high_hz: the range of psi for which it holds.
        error: relative error within that range, root mean square over the samples: of a low rank the largest, of
            segments a bound of it.
        products: q, real `[node, shot, sample]`.
        nodes: P, real `[node, term]`, so that conj(w_l) w_l' = sum_j q_j P_jl P_jl'. None where no two functions
            overlap: then q_l is |w_l|^2 and P the identity.
    """

    weights: Tensor
    low_hz: float
    high_hz: float
    error: float
    products: Tensor
    nodes: Tensor | None

    def coefficients(self, field_hz: Tensor) -> Tensor:
        """c of each pixel: from psi in Hz, `[...]`, to complex `[..., term]`.

        Raises:
            ValueError: a value is not finite or out of range.
        """
        self._require_range(field_hz)
        return self._coefficients(field_hz)

    def derivatives(self, field_hz: Tensor) -> Tensor:
        """dc / dpsi of each pixel, in 1 / Hz: from `[...]` to complex `[..., term]`.

        Raises:
            ValueError: a value is not finite or out of range.
        """
        self._require_range(field_hz)
        return self._derivatives(field_hz)

    @abstractmethod
    def _coefficients(self, field_hz: Tensor) -> Tensor: ...

    @abstractmethod
    def _derivatives(self, field_hz: Tensor) -> Tensor: ...

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(x.nbytes for x in (self.weights, self.products, self.nodes) if x is not None)

    def _require_range(self, field_hz: Tensor) -> None:
        low, high = (float(x) for x in field_hz.detach().aminmax())
        finite = math.isfinite(low) and math.isfinite(high)
        if not finite or low < self.low_hz - _OUTSIDE or high > self.high_hz + _OUTSIDE:
            raise ValueError(
                f"the field map reaches from {low:g} to {high:g} Hz, but the off-resonance model was built for "
                f"{self.low_hz:g} to {self.high_hz:g} Hz"
            )


class LowRank(TimeFunctions):
    """The fewest functions of time that reach an error: left singular vectors of the matrix of exponentials.

    (Sutton, Noll, Fessler: Fast, iterative image reconstruction for MRI in the presence of field inhomogeneities. IEEE
    Trans Med Imaging 22:178, 2003; Fessler et al., IEEE Trans Signal Process 53:3393, 2005.)

    Around the middle frequency the singular vectors are real, so that w_l is a real function times one carrier, and the
    products conj(w_l) w_l' are real. The products have about twice the time-bandwidth of the functions, and far fewer
    dimensions than there are pairs: they are known from their values at so many times, the nodes.
    """

    def __init__(self, times: Tensor, low_hz: float, high_hz: float, error: float = DEFAULT_ERROR) -> None:
        """Takes times `[shot, sample]` in seconds; everything is computed in double and held in their precision.

        Raises:
            ValueError: the range is not one, or too wide for the duration; the error is not above rounding; or a
                time is not finite.
        """
        if not -math.inf < low_hz <= high_hz < math.inf:
            raise ValueError(f"expected a range of frequencies in Hz, got {low_hz:g} to {high_hz:g}")
        if not 1e-7 <= error < 1:
            raise ValueError(f"expected an error of the off-resonance model from 1e-7 to below 1, got {error:g}")
        self.low_hz, self.high_hz = low_hz, high_hz
        self._middle_hz = (low_hz + high_hz) / 2
        unique, where, counts = torch.unique(times.double(), return_inverse=True, return_counts=True)
        share = counts.double() / counts.sum()
        self._middle_s = float((unique[0] + unique[-1]) / 2)
        duration = float(unique[-1] - unique[0])
        if not math.isfinite(duration):
            raise ValueError("the times of the samples hold values that are not finite")
        if (high_hz - low_hz) * duration > LARGEST_BANDWIDTH:
            raise ValueError(
                f"off-resonance from {low_hz:g} to {high_hz:g} Hz over {1e3 * duration:g} ms turns the phase "
                f"{(high_hz - low_hz) * duration:.0f} times, more than {LARGEST_BANDWIDTH:g}; are the field map's "
                "unit and the times right?"
            )
        self._half_width_hz = max((high_hz - low_hz) / 2, _OUTSIDE)  # a range of no width still needs a scale
        nodes = _chebyshev_nodes(math.pi * self._half_width_hz * duration, unique.device)
        angle = 2 * math.pi * self._half_width_hz * (unique - self._middle_s)[:, None] * nodes
        functions, coefficients, self.error = _factorise(angle, share, error)

        carrier = torch.polar(torch.ones_like(unique), -2 * math.pi * self._middle_hz * unique)
        products, nodes = _products(functions, share, min(1e-2 * error, 1e-5))
        precision = times.dtype
        self.weights = (carrier * functions)[:, where].to(precision.to_complex())
        self.products = products[:, where].to(precision)
        self.nodes = nodes.to(precision)
        self._series = _chebyshev_series(coefficients)

    def _coefficients(self, field_hz: Tensor) -> Tensor:
        """A Chebyshev series in the frequency, shifted to the middle of the readout."""
        return self._shift(field_hz)[..., None] * self._sum(self._series, field_hz)

    def _derivatives(self, field_hz: Tensor) -> Tensor:
        slopes = (chebyshev.chebder(self._series) / self._half_width_hz).astype(np.complex128)
        turning = -2j * math.pi * self._middle_s
        inner = self._sum(slopes, field_hz) + turning * self._sum(self._series, field_hz)
        return self._shift(field_hz)[..., None] * inner

    def _shift(self, field_hz: Tensor) -> Tensor:
        """exp(-2 pi i (psi - middle) t) at the middle of the readout."""
        angle = -2 * math.pi * self._middle_s * (field_hz - self._middle_hz)
        return torch.polar(torch.ones_like(angle), angle)

    def _sum(self, series: NDArray[np.complex128], field_hz: Tensor) -> Tensor:
        u = (field_hz - self._middle_hz) / self._half_width_hz
        polynomials = [torch.ones_like(u), u]
        while len(polynomials) < len(series):
            polynomials.append(2 * u * polynomials[-1] - polynomials[-2])
        stacked = torch.stack(polynomials[: len(series)], -1)
        parts = np.stack([series.real, series.imag], -1).reshape(len(series), -1)
        values = stacked @ torch.from_numpy(parts).to(stacked)
        return torch.view_as_complex(values.view(*field_hz.shape, -1, 2))


class HardSegments(TimeFunctions):
    """The block-diagonal form of blind RED-diff's equations 15 and 16: each sample takes the phase of its segment.

    The reference method: its error falls only as one over the number of segments. Segments are equally long in time.
    """

    def __init__(self, times: Tensor, segments: int, low_hz: float = -math.inf, high_hz: float = math.inf) -> None:
        """Takes times `[shot, sample]` in seconds.

        Raises:
            ValueError: there is not at least one segment.
        """
        if segments < 1:
            raise ValueError(f"expected at least one segment, got {segments}")
        self.low_hz, self.high_hz = low_hz, high_hz
        precise = times.double()
        start, end = precise.min(), precise.max()
        width = (end - start).clamp_min(1e-12) / segments
        index = ((precise - start) / width).long().clamp(0, segments - 1)
        index = torch.unique(index, return_inverse=True)[1]  # a gap in time leaves no empty segment
        member = torch.nn.functional.one_hot(index).movedim(-1, 0).to(precise)
        self._centres_s = (member * precise).sum((1, 2)) / member.sum((1, 2))
        within = precise - self._centres_s[index]
        # |1 - exp(i angle)| = 2 sin(angle / 2) grows up to half a turn, which the unbounded range always reaches.
        half_turns = (max(abs(low_hz), abs(high_hz)) * within.abs()).nan_to_num(0.0).clamp(max=0.5)
        self.error = float((2 * torch.sin(math.pi * half_turns)).square().mean().sqrt())
        self.products = member.to(times.dtype)
        self.weights = self.products.to(times.dtype.to_complex())
        self.nodes = None

    def _coefficients(self, field_hz: Tensor) -> Tensor:
        angle = -2 * math.pi * field_hz[..., None] * self._centres_s.to(field_hz)
        return torch.polar(torch.ones_like(angle), angle)

    def _derivatives(self, field_hz: Tensor) -> Tensor:
        return -2j * math.pi * self._centres_s.to(field_hz) * self._coefficients(field_hz)


def _chebyshev_nodes(reach: float, device: torch.device) -> Tensor:
    """The Chebyshev points of 0 .. 1, ends included: twice as many as interpolate exp(i angle u), |angle| < reach.

    Their density rises towards the ends, where a basis made from evenly spaced frequencies would be worst; twice as
    many leave no peak of the error unseen between them.
    """
    half_degree = math.ceil(reach + 5 * reach ** (1 / 3) + 15)
    return torch.cos(torch.arange(half_degree + 1, dtype=torch.float64, device=device) * (math.pi / 2 / half_degree))


def _factorise(angle: Tensor, share: Tensor, error: float) -> tuple[Tensor, Tensor, float]:
    """Real functions of time whose span holds exp(-i angle) to a relative error.

    Args:
        angle: `[time, frequency]`.
        share: of all samples that have each time, `[time]`.
        error: root mean square over the samples, at the worst frequency.

    Returns:
        Functions `[term, time]`, orthonormal in the mean over samples; the coefficients of the exponentials, complex
        `[term, frequency]`; and the error that is left.
    """
    root = share.sqrt()[:, None]
    cosines, sines = root * angle.cos(), root * angle.sin()
    left = torch.linalg.svd(torch.cat([cosines, sines], 1), full_matrices=False).U
    coefficients = torch.complex(left.T @ cosines, -(left.T @ sines))
    missing = (1 - coefficients.abs().square().cumsum(0)).clamp_min(0).amax(1).sqrt()
    # Rounding leaves at most about 1e-7, so that some number of terms always reaches the error.
    terms = min(int((missing > error).sum()) + 1, len(missing))
    return (left / root).T[:terms], coefficients[:terms], float(missing[terms - 1])


def _products(functions: Tensor, share: Tensor, error: float) -> tuple[Tensor, Tensor]:
    """Interpolates all products of two functions between few times.

    There are far more pairs than dimensions, so their span is first found from random mixtures (Halko, Martinsson,
    Tropp, SIAM Rev 53:217, 2011), always the same ones; the times are the pivots of its QR factorisation (Drmac,
    Gugercin, SIAM J Sci Comput 38:A631, 2016).

    Args:
        functions: real `[term, time]`.
        share: of all samples that have each time, `[time]`.
        error: of the products, relative to the largest.

    Returns:
        q `[node, time]` and P `[node, term]`, the functions at the nodes, so that the product of functions l and l' is
        sum_j q_j P_jl P_jl'.
    """
    terms, root = len(functions), share.sqrt()[:, None]
    generator = torch.Generator(functions.device).manual_seed(0)
    mixtures = torch.randn(
        2 * terms + 40, terms, terms, generator=generator, dtype=functions.dtype, device=functions.device
    )
    sketch = torch.stack([(functions * (mixture @ functions)).sum(0) for mixture in mixtures], 1)
    span = torch.linalg.qr(root * sketch).Q
    pairs = torch.cat([(functions[k] * functions[k:]) @ (root * span) for k in range(terms)])
    _, values, right = torch.linalg.svd(pairs, full_matrices=False)
    rank = int((values > error * values[0]).sum())
    basis = span @ right[:rank].T / root  # [time, rank]
    pivots = scipy.linalg.qr(basis.T.cpu().numpy(), mode="r", pivoting=True)[1][:rank].copy()
    times = torch.from_numpy(pivots).to(functions.device)
    return torch.linalg.solve(basis[times].T, basis.T), functions[:, times].T


def _chebyshev_series(coefficients: Tensor) -> NDArray[np.complex128]:
    """Coefficients `[degree, term]` from values `[term, node]` at the nodes 0 .. 1; those at -u are conjugate.

    High degrees that hold nothing but rounding are left out.
    """
    half = coefficients.cpu().numpy().T
    degree = 2 * (len(half) - 1)
    nodes = np.cos(np.pi * np.arange(degree + 1) / degree)
    series: NDArray[np.complex128] = chebyshev.chebfit(nodes, np.concatenate([half, half[-2::-1].conj()]), degree)
    present = np.flatnonzero(np.abs(series).max(1) > 1e-14)
    return series[: present[-1] + 1]
