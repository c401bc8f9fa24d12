"""Trajectories that an MRD header describes instead of the stream carrying them.

Spirals need a trajectoryDescription with one of these identifiers and user parameters:

    HargreavesVDS2000       long interleaves, SamplingTime_ns; double MaxGradient_G_per_cm, MaxSlewRate_G_per_cm_per_s,
                            krmax_per_cm, FOVCoeff_1_cm and, for a variable density, FOVCoeff_2_cm, ... (the
                            description that Gadgetron reads; coefficient i + 1 belongs to k^i with k in 1/cm)
    ArchimedeanSpiral       long interleaves
    VariableDensitySpiral   long interleaves, double exponent

The formulas and their sources are in `recon_core.trajectories`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import takewhile

import ismrmrd
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gadgets.mrd import limit_of
from recon_core.trajectories import (
    SpiralDesign,
    golden_angles,
    hargreaves_spiral,
    interleaf_angles,
    linear_angles,
    radial_spokes,
    turned,
    variable_density_spiral,
)

Positions = NDArray[np.float32]
"""`[sample, (x, y)]` in cycles per encoded field of view."""

InPlane = Callable[[int, int, int], Positions]
"""From kspace_encode_step_1, the number of samples and the sample at the centre of k-space to positions.

There may be fewer positions than samples: a spiral that has ended. The sample at the centre may lie outside.
"""


def in_plane_trajectory(encoding: ismrmrd.xsd.encodingType) -> InPlane:
    """What the header says about where the samples of a shot lie in the plane.

    Raises:
        ValueError: the header does not describe the trajectory, or describes one that is not known here.
    """
    kind = encoding.trajectory
    if kind == ismrmrd.xsd.trajectoryType.CARTESIAN:
        return _cartesian(encoding)
    if kind in (ismrmrd.xsd.trajectoryType.RADIAL, ismrmrd.xsd.trajectoryType.GOLDENANGLE):
        return _radial(encoding, golden=kind == ismrmrd.xsd.trajectoryType.GOLDENANGLE)
    if kind == ismrmrd.xsd.trajectoryType.SPIRAL:
        return _spiral(encoding)
    raise ValueError(
        f"the trajectory {kind.value!r} cannot be computed from the header (cartesian, radial, goldenangle and spiral "
        "can); it must come with the acquisitions"
    )


def step_centre(limit: ismrmrd.xsd.limitType | None, matrix: int) -> int:
    """The encoding step at the centre of k-space; N // 2 where the header does not say."""
    return matrix // 2 if limit is None else int(limit.center)


def steps_of(limit: ismrmrd.xsd.limitType | None) -> int | None:
    """How many encoding steps the header announces; None where it does not say."""
    return None if limit is None else int(limit.maximum) - int(limit.minimum) + 1


def _matrix(encoding: ismrmrd.xsd.encodingType) -> tuple[int, int]:
    size = encoding.encodedSpace.matrixSize
    return int(size.y), int(size.x)


def _positions(trajectory: Tensor) -> Positions:
    """From `[(y, x), sample]` to `[sample, (x, y)]`."""
    return np.ascontiguousarray(trajectory.flip(0).T.to(torch.float32).numpy())


def _cartesian(encoding: ismrmrd.xsd.encodingType) -> InPlane:
    centre_step = step_centre(limit_of(encoding, "kspace_encoding_step_1"), _matrix(encoding)[0])

    def line(step: int, samples: int, centre: int) -> Positions:
        kx = np.arange(samples, dtype=np.float32) - centre
        return np.stack([kx, np.full_like(kx, step - centre_step)], axis=1)

    return line


def _radial(encoding: ismrmrd.xsd.encodingType, golden: bool) -> InPlane:
    matrix = _matrix(encoding)
    spokes = steps_of(limit_of(encoding, "kspace_encoding_step_1"))
    if spokes is None and not golden:
        raise ValueError("linear radial spokes need their number: the header has no limits of kspace_encoding_step_1")
    angles = None if golden or spokes is None else linear_angles(spokes)

    def spoke(step: int, samples: int, centre: int) -> Positions:
        angle = golden_angles(1, first=step) if angles is None else angles[_known(step, len(angles)), None]
        # A partial spoke has the spacing of the full one, which reaches as far on both sides of the centre.
        full = samples if centre == samples // 2 else 2 * max(centre, samples - centre)
        return _positions(radial_spokes(angle, full, matrix, centre)[:, 0, :samples])

    return spoke


def _known(step: int, steps: int) -> int:
    """The step itself, if it is one of those that are described."""
    if step >= steps:
        raise ValueError(f"kspace_encode_step_1 is {step}, but the header describes {steps} steps")
    return step


def _spiral(encoding: ismrmrd.xsd.encodingType) -> InPlane:
    description = encoding.trajectoryDescription
    families = {
        "HargreavesVDS2000": _hargreaves,
        "ArchimedeanSpiral": _archimedean,
        "VariableDensitySpiral": _variable_density,
    }
    identifier = description.identifier if description else None
    if identifier not in families:
        raise ValueError(
            f"a spiral without its trajectory in the stream needs a trajectoryDescription in the header with one of "
            f"the identifiers {', '.join(families)}, got {identifier!r}"
        )
    return families[identifier](encoding, _Parameters(description))


class _Parameters:
    """The user parameters of a trajectory description."""

    def __init__(self, description: ismrmrd.xsd.trajectoryDescriptionType) -> None:
        both = [*description.userParameterLong, *description.userParameterDouble]
        self._identifier = description.identifier
        self._values: Mapping[str, float] = {parameter.name: parameter.value for parameter in both}

    def __getitem__(self, name: str) -> float:
        if name not in self._values:
            raise ValueError(f"the trajectory description {self._identifier} lacks the user parameter {name}")
        return float(self._values[name])

    def numbered(self, pattern: str) -> list[float]:
        """The values of `pattern` with 1, 2, ... for the braces, as far as they go."""
        names = takewhile(self._values.__contains__, (pattern.format(i) for i in range(1, len(self._values) + 2)))
        return [self[name] for name in names] or [self[pattern.format(1)]]


def _archimedean(encoding: ismrmrd.xsd.encodingType, parameters: _Parameters) -> InPlane:
    return _closed_form(encoding, int(parameters["interleaves"]), exponent=1.0)


def _variable_density(encoding: ismrmrd.xsd.encodingType, parameters: _Parameters) -> InPlane:
    return _closed_form(encoding, int(parameters["interleaves"]), parameters["exponent"])


def _closed_form(encoding: ismrmrd.xsd.encodingType, interleaves: int, exponent: float) -> InPlane:
    matrix = _matrix(encoding)

    @lru_cache(maxsize=1)  # all readouts have the same number of samples
    def all_shots(samples: int) -> Tensor:
        return variable_density_spiral(interleaves, samples, matrix, exponent)

    def shot(step: int, samples: int, centre: int) -> Positions:
        return _positions(all_shots(samples)[:, _known(step, interleaves)])

    return shot


def _hargreaves(encoding: ismrmrd.xsd.encodingType, parameters: _Parameters) -> InPlane:
    interleaves = int(parameters["interleaves"])
    coefficients = parameters.numbered("FOVCoeff_{}_cm")
    first = hargreaves_spiral(
        SpiralDesign(
            interleaves=interleaves,
            fov=tuple(value * 1e-2 ** (i + 1) for i, value in enumerate(coefficients)),
            radius=parameters["krmax_per_cm"] * 1e2,
            gradient=parameters["MaxGradient_G_per_cm"] * 10,
            slew=parameters["MaxSlewRate_G_per_cm_per_s"] * 1e-2,
            dwell=parameters["SamplingTime_ns"] * 1e-9,
        )
    )
    fov = encoding.encodedSpace.fieldOfView_mm
    fov_m = torch.tensor([fov.y, fov.x], dtype=torch.float64)[:, None] * 1e-3
    angles = interleaf_angles(interleaves)

    def shot(step: int, samples: int, centre: int) -> Positions:
        number = _known(step, interleaves)
        return _positions(turned(first, angles[number : number + 1])[:, 0] * fov_m)[:samples]

    return shot
