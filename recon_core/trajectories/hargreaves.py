"""Spirals of variable density that respect a scanner's gradient amplitude and slew rate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

GAMMA_HZ_PER_T = 42.58e6  # the four digits that spiral designs have always used
_STEPS_PER_SAMPLE = 8  # of the integration
_TOLERANCE = 1.05  # of the slew rate, for steps of finite length
_MOST_SAMPLES = 2**16  # what an MRD acquisition can hold


@dataclass(frozen=True, kw_only=True)
class SpiralDesign:
    """What a spiral is designed from.

    Attributes:
        interleaves: of the fully sampled trajectory.
        fov: coefficients of the field of view as a polynomial in the k-space radius, FOV(k) = sum_i fov[i] k^i, in
            metres for k in 1/m. One coefficient gives uniform density.
        radius: of k-space in 1/m, where the spiral ends.
        gradient: largest amplitude in mT/m.
        slew: largest slew rate in T/m/s.
        dwell: sampling time in seconds.
    """

    interleaves: int
    fov: tuple[float, ...]
    radius: float
    gradient: float
    slew: float
    dwell: float

    def __post_init__(self) -> None:
        for name in ("interleaves", "radius", "gradient", "slew", "dwell"):
            if not getattr(self, name) > 0:
                raise ValueError(f"expected a spiral design with a positive {name}, got {getattr(self, name)}")
        if not self.fov or not all(self.fov_at(self.radius * step / 100) > 0 for step in range(101)):
            raise ValueError(f"expected a field of view that is positive up to the radius, got coefficients {self.fov}")

    def fov_at(self, k: float) -> float:
        """Field of view in metres at the radius `k` in 1/m."""
        return sum(c * k**i for i, c in enumerate(self.fov))

    def winding(self, k: float) -> float:
        """Angle per radius that Nyquist asks for, in radians metre."""
        return 2 * math.pi * self.fov_at(k) / self.interleaves

    def winding_slope(self, k: float) -> float:
        """Derivative of the winding by the radius `k`."""
        return 2 * math.pi * sum(i * c * k ** (i - 1) for i, c in enumerate(self.fov) if i) / self.interleaves

    def speed_limit(self, k: float) -> float:
        """Largest k-space speed in 1/m/s: by the gradient, and by samples at most one cycle per FOV(k) apart."""
        return min(GAMMA_HZ_PER_T * self.gradient * 1e-3, 1 / (self.fov_at(k) * self.dwell))


def hargreaves_spiral(design: SpiralDesign) -> Tensor:
    """The first interleaf of the fastest spiral that a design allows.

    With k(t) = r(t) exp(i theta(t)), turns that are interleaves / FOV(r) apart ask for theta' = q(r) r' where
    q = 2 pi FOV(r) / interleaves. Then |k'|^2 = r'^2 (1 + q^2 r^2), and |k''| is quadratic in r''. At each time the
    largest r'' is taken that both limits allow. (B. Hargreaves: Spin-manipulation efficient ..., thesis, Stanford
    University, 2001; also the `HargreavesVDS2000` trajectory description of MRD files.)

    Args:
        design: fields of view, limits, sampling.

    Returns:
        float64 `[2, sample]` in 1/m, axes (y, x); starts at the centre along x, winds towards y, and ends with the
        last sample inside `design.radius`.

    Raises:
        ValueError: no spiral keeps the slew rate, because the field of view grows too fast with the radius, or the
            spiral takes more samples than an acquisition can hold.
    """
    radius, angle = torch.tensor(list(_samples(design)), dtype=torch.float64).T
    return torch.stack([radius * angle.sin(), radius * angle.cos()])


def slowed(design: SpiralDesign, samples: int) -> SpiralDesign:
    """The design whose spiral is the same curve, taken more slowly: it has just `samples` samples.

    A curve run through s times as fast needs s times the gradient and s^2 times the slew rate.

    Raises:
        ValueError: even at the limits of `design` the spiral takes more samples.
    """
    speed_limit = min(design.speed_limit(design.radius * step / 100) for step in range(101))
    slow = replace(design, gradient=speed_limit / GAMMA_HZ_PER_T * 1e3)
    # Half a sample to spare keeps rounding from changing the count.
    wanted, shortest = (samples - 0.5) * design.dwell, _duration(slow)
    if shortest > wanted:
        raise ValueError(
            f"a spiral of {design.interleaves} interleaves with {design.gradient:g} mT/m and {design.slew:g} T/m/s "
            f"takes {shortest * 1e3:.2f} ms, got a readout of {samples * design.dwell * 1e3:.2f} ms"
        )
    for _ in range(2):  # the second time for the error of finite steps
        factor = _duration(slow) / wanted
        slow = replace(slow, gradient=slow.gradient * factor, slew=slow.slew * factor**2)
    return slow


def _duration(design: SpiralDesign) -> float:
    """Seconds until the radius is reached."""
    samples = list(_samples(design))
    (before, _), (last, _) = samples[-2:]
    return design.dwell * (len(samples) - 1 + (design.radius - last) / (last - before))


def _samples(design: SpiralDesign) -> Iterator[tuple[float, float]]:
    """(radius in 1/m, angle in radians) of one sample after another."""
    step = design.dwell / _STEPS_PER_SAMPLE
    r = speed = angle = 0.0
    for _ in range(_MOST_SAMPLES):
        yield r, angle
        for _ in range(_STEPS_PER_SAMPLE):
            q = design.winding(r)
            acceleration = _acceleration(design, r, speed, step)
            middle = speed + acceleration * step / 2
            r, speed, angle = r + middle * step, speed + acceleration * step, angle + q * middle * step
        if r > design.radius:
            return
    raise ValueError(f"expected a spiral of at most {_MOST_SAMPLES} samples, got more: {design}")


def _acceleration(design: SpiralDesign, r: float, speed: float, step: float) -> float:
    """The largest r'' that keeps |k'| and |k''| within the limits.

    k'' exp(-i theta) = (r'' - q^2 r r'^2) + i (q r r'' + (2 q + q' r) r'^2)
    """
    q, limit = design.winding(r), GAMMA_HZ_PER_T * design.slew
    along, across = -(q**2) * r * speed**2, (2 * q + design.winding_slope(r) * r) * speed**2
    a, half_b = 1 + (q * r) ** 2, along + q * r * across
    discriminant = half_b**2 - a * (along**2 + across**2 - limit**2)
    # Steps of finite length come close to the limit from either side, hence not always a real root.
    by_slew = (-half_b + math.sqrt(max(discriminant, 0))) / a
    by_gradient = (design.speed_limit(r) / math.sqrt(a) - speed) / step
    acceleration = min(by_slew, by_gradient)
    if math.hypot(acceleration + along, q * r * acceleration + across) > _TOLERANCE * limit:
        raise ValueError(
            f"no spiral keeps {design.slew:g} T/m/s at the radius {r:g}/m: its field of view grows too fast"
        )
    return acceleration
