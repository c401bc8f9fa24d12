"""Shims found by sharpness, of an exactly simulated disc with an eccentric hole."""

import re

import pytest
import torch
from torch import Tensor

from recon_core.calibration.shim import MOST_PLANES, Shim, demodulated, sharpest_shim
from recon_core.operators.sampling import sampling_operator
from recon_core.simulation import exact_signal

from analytic import complex_noise, ring_of_coils, spiral_trajectory

N, COILS, LIMIT_HZ = 48, 3, 800.0
TIMES = torch.linspace(0, 3e-3, 400).expand(12, -1)
TRAJECTORY = spiral_trajectory(N, 12, 400).float()
SAMPLING = sampling_operator(TRAJECTORY, (N, N))


def disc() -> tuple[Tensor, Tensor]:
    """The image, and where it is, 2 and 3 pixels off the centre."""
    line = torch.arange(N) - N // 2
    inside = (line[:, None] - 2) ** 2 + (line + 3) ** 2 < 17**2
    hole = (line[:, None] - 5) ** 2 + (line + 8) ** 2 < 6**2
    return (inside & ~hole).to(torch.complex64), inside


IMAGE, INSIDE = disc()


def scanned(field_hz: Tensor) -> Tensor:
    """With noise of 2 % of the samples' root mean square."""
    coil_images = ring_of_coils(N, COILS).to(IMAGE) * IMAGE
    kspace = exact_signal(torch.ones_like(IMAGE), coil_images, field_hz, TRAJECTORY, TIMES[0])
    return kspace + 0.02 * kspace.abs().square().mean().sqrt() * complex_noise(*kspace.shape)


def rms_hz(field_hz: Tensor) -> float:
    return float(field_hz[INSIDE].square().mean().sqrt())


@pytest.mark.parametrize(
    ("truth", "gained"),
    [
        (Shim(0.0, 0.0, 0.0, 0.0), False),
        (Shim(300.0, -480.0, 80.0, 0.0), True),
        (Shim(-150.0, 280.0, 560.0, 0.0), True),
    ],
)
def test_a_shim_is_found_wherever_it_is(truth, gained):
    field = truth.field((N, N))
    found = sharpest_shim(SAMPLING, scanned(field), TIMES, LIMIT_HZ)
    assert rms_hz(found.field((N, N)) - field) < 15
    assert (found.gain > 0.25) == gained


def test_a_shim_is_a_plane_through_the_centre_of_the_field_of_view():
    field = Shim(10.0, 40.0, -60.0, 0.0).field((8, 12))
    assert field.shape == (8, 12)
    assert float(field[4, 6]) == 10
    assert float(field[0, 6]) == 10 - 20
    assert float(field[4, 0]) == 10 + 30


def test_an_image_is_right_where_the_field_has_its_frequency():
    """Of an offset of 200 Hz, that of 200 Hz is the one of no offset."""
    still, moved = (scanned(torch.full((N, N), offset)) for offset in (0.0, 200.0))
    (right,) = demodulated(SAMPLING, still, TIMES, [0.0])
    blurred, sharp = demodulated(SAMPLING, moved, TIMES, [0.0, 200.0])
    assert (sharp - right).norm() < 0.05 * right.norm() < (blurred - right).norm()


def test_what_shows_no_shim_is_told():
    kspace = torch.ones(COILS, *TIMES.shape, dtype=torch.complex64)
    with pytest.raises(ValueError, match="all samples have the same time"):
        sharpest_shim(SAMPLING, kspace, torch.zeros_like(TIMES), LIMIT_HZ)
    with pytest.raises(ValueError, match="the image shows no object"):
        sharpest_shim(SAMPLING, torch.zeros_like(kspace), TIMES, LIMIT_HZ)


def test_too_many_candidates_are_refused_with_the_limit_that_makes_fewer():
    kspace = torch.ones(COILS, *TIMES.shape, dtype=torch.complex64)
    with pytest.raises(ValueError, match=f"make [0-9]+ candidates, more than {MOST_PLANES}") as refusal:
        sharpest_shim(SAMPLING, kspace, TIMES, 20000.0)
    highest = float(re.search("a limit of ([0-9]+) Hz", str(refusal.value))[1])
    assert 0.46 / 3e-3 < highest < 20000
