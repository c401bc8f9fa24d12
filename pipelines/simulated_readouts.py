"""What a simulated scanner plays out: where and when each shot samples, and how an MRD header describes it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from ismrmrd import xsd
from torch import Tensor

from recon_core.trajectories import (
    SpiralDesign,
    cartesian_lines,
    hargreaves_spiral,
    interleaf_angles,
    linear_angles,
    radial_spokes,
    slowed,
    turned,
)

CALIBRATION_LINES = 24
FIRST_SAMPLE_S = 2e-3  # after the excitation
_MAX_GRADIENT_MT_PER_M, _MAX_SLEW_T_PER_M_S = 40.0, 150.0
_SPIRAL_READOUT_MS, _SPIRAL_SHOTS = 15.6, 8
_MOST_SAMPLES = 2**16 - 1


@dataclass(frozen=True, kw_only=True)
class Readouts:
    """The shots of one image.

    Attributes:
        kind: of trajectory.
        trajectory: float64 `[2, shot, sample]` in cycles per field of view of the image, axes (y, x), on the values
            that the single precision of a file can hold.
        steps: kspace_encode_step_1 of each shot.
        all_steps: how many steps the fully sampled trajectory has.
        centre_step, centre_sample: at the centre of k-space.
        dwell_s: sampling time.
        oversampling: of the readout, which a reconstruction is to remove.
        calibration: steps that serve for parallel calibration as well.
        description: of the trajectory for the header.
    """

    kind: xsd.trajectoryType
    trajectory: Tensor
    steps: tuple[int, ...]
    all_steps: int
    centre_step: int
    centre_sample: int
    dwell_s: float
    oversampling: int = 1
    calibration: frozenset[int] = frozenset()
    description: xsd.trajectoryDescriptionType | None = None

    @property
    def samples(self) -> int:
        """Of one shot."""
        return self.trajectory.shape[-1]

    @property
    def times(self) -> Tensor:
        """Of the samples, in seconds from the excitation: float64 `[sample]`."""
        return FIRST_SAMPLE_S + self.dwell_s * torch.arange(self.samples, dtype=torch.float64)

    @property
    def echo_time_s(self) -> float:
        """When the centre of k-space is sampled."""
        return FIRST_SAMPLE_S + self.centre_sample * self.dwell_s


def spiral(
    matrix: tuple[int, int], fov_m: tuple[float, float], shots: int | None, acceleration: int, readout_ms: float | None,
    dwell_s: float,
) -> Readouts:  # fmt: skip
    """Spiral-out interleaves within the limits of a whole-body scanner.

    An accelerated spiral has a variable density: one in `acceleration` of the interleaves is played out, and these
    sample the centre of k-space fully, which coil calibration needs, and only the edge as coarsely as that.

    Raises:
        ValueError: the readout is too short for a spiral, or too long for an acquisition.
    """
    interleaves = math.ceil((_SPIRAL_SHOTS if shots is None else shots) / acceleration)
    samples = _sample_count(_SPIRAL_READOUT_MS if readout_ms is None else readout_ms, dwell_s)
    fov, radius = max(fov_m), matrix[1] / fov_m[1] / 2
    fastest = SpiralDesign(
        interleaves=interleaves,
        fov=_denser_centre(fov, radius, acceleration),
        radius=radius,
        gradient=_MAX_GRADIENT_MT_PER_M,
        slew=_MAX_SLEW_T_PER_M_S,
        dwell=dwell_s,
    )
    design = slowed(fastest, samples)
    per_metre = turned(hargreaves_spiral(design), interleaf_angles(interleaves))
    return Readouts(
        kind=xsd.trajectoryType.SPIRAL,
        trajectory=_as_stored(per_metre * torch.tensor(fov_m, dtype=torch.float64)[:, None, None]),
        steps=tuple(range(interleaves)),
        all_steps=interleaves,
        centre_step=0,
        centre_sample=0,
        dwell_s=dwell_s,
        description=_described(design),
    )


def _denser_centre(fov: float, radius: float, acceleration: int) -> tuple[float, ...]:
    """Coefficients of FOV(k) that falls from `fov` at the centre to fov / R at the edge as (1 - k / radius)^3 does."""
    edge = fov / acceleration
    drop = fov - edge
    return (fov, -3 * drop / radius, 3 * drop / radius**2, -drop / radius**3) if drop else (fov,)


def radial(
    matrix: tuple[int, int], shots: int | None, acceleration: int, readout_ms: float | None, dwell_s: float
) -> Readouts:
    """Full spokes at even angles; by default as many as Nyquist asks for, with twice as many samples as the matrix.

    Raises:
        ValueError: the readout has fewer samples than the matrix, or more than an acquisition can hold.
    """
    spokes = math.ceil(math.pi / 2 * max(matrix)) if shots is None else shots
    samples = 2 * max(matrix) if readout_ms is None else _sample_count(readout_ms, dwell_s)
    if samples < max(matrix):
        raise ValueError(f"expected a radial readout of at least {max(matrix)} samples, got {samples}")
    steps = tuple(range(0, spokes, acceleration))
    return Readouts(
        kind=xsd.trajectoryType.RADIAL,
        trajectory=_as_stored(radial_spokes(linear_angles(spokes)[list(steps)], samples, matrix)),
        steps=steps,
        all_steps=spokes,
        centre_step=0,
        centre_sample=samples // 2,
        dwell_s=dwell_s,
    )


def cartesian(
    matrix: tuple[int, int], shots: int | None, acceleration: int, readout_ms: float | None, dwell_s: float
) -> Readouts:
    """Lines along x with twofold oversampling; every R-th, and all of the 24 at the centre for calibration.

    Raises:
        ValueError: another number of shots or another length of the readout than follow from the matrix.
    """
    lines, samples = matrix[0], 2 * matrix[1]
    if shots not in (None, lines):
        raise ValueError(f"a Cartesian scan of this matrix has {lines} shots, got {shots}")
    if readout_ms is not None and _sample_count(readout_ms, dwell_s) != samples:
        raise ValueError(
            f"a Cartesian readout of this matrix has {samples} samples, which last {samples * dwell_s * 1e3:g} ms; "
            f"got {readout_ms:g} ms"
        )
    half = min(CALIBRATION_LINES, lines) // 2
    region = range(lines // 2 - half, lines // 2 + half) if acceleration > 1 else range(0)
    steps = tuple(sorted({*range(0, lines, acceleration), *region}))
    from_centre = torch.tensor(steps) - lines // 2
    return Readouts(
        kind=xsd.trajectoryType.CARTESIAN,
        trajectory=cartesian_lines(from_centre[None], samples, samples // 2, spacing=0.5),
        steps=steps,
        all_steps=lines,
        centre_step=lines // 2,
        centre_sample=samples // 2,
        dwell_s=dwell_s,
        oversampling=2,
        calibration=frozenset(region),
    )


def _sample_count(readout_ms: float, dwell_s: float) -> int:
    samples = round(readout_ms * 1e-3 / dwell_s)
    if not 1 < samples <= _MOST_SAMPLES:
        raise ValueError(
            f"a readout of {readout_ms:g} ms with a dwell time of {dwell_s * 1e6:g} us has {samples} samples; an MRD "
            f"acquisition holds at most {_MOST_SAMPLES}"
        )
    return samples


def _as_stored(trajectory: Tensor) -> Tensor:
    return trajectory.to(torch.float32).to(torch.float64)


def _described(design: SpiralDesign) -> xsd.trajectoryDescriptionType:
    """The description that Gadgetron reads: lengths in cm, gradients in G/cm."""
    longs = {
        "interleaves": design.interleaves,
        "fov_coefficients": len(design.fov),
        "SamplingTime_ns": round(design.dwell * 1e9),
    }
    doubles = {
        "MaxGradient_G_per_cm": design.gradient / 10,
        "MaxSlewRate_G_per_cm_per_s": design.slew * 100,
        **{f"FOVCoeff_{i}_cm": value * 100**i for i, value in enumerate(design.fov, start=1)},
        "krmax_per_cm": design.radius / 100,
    }
    return xsd.trajectoryDescriptionType(
        identifier="HargreavesVDS2000",
        userParameterLong=[xsd.userParameterLongType(name=n, value=v) for n, v in longs.items()],
        userParameterDouble=[xsd.userParameterDoubleType(name=n, value=v) for n, v in doubles.items()],
    )
