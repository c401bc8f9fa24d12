"""Functions of which errors of coil maps are made."""

import math

import pytest
import torch

from recon_core.calibration.espirit import espirit
from recon_core.coil_errors import DEVIATION, LENGTH_MM, CoilErrors
from recon_core.field_basis import halved
from recon_core.fourier import fft_centred, resize_centred

from analytic import complex_noise, positions, relative, ring_of_coils

SHAPE, FOV_MM, COILS = (24, 30), (200.0, 250.0), 3


@pytest.fixture(scope="module")
def errors() -> CoilErrors:
    return CoilErrors.smooth(SHAPE, FOV_MM)


def test_functions_are_orthonormal_in_the_mean_over_the_pixels(errors):
    functions = errors.functions.flatten(1).double()
    moments = functions @ functions.T / functions.shape[1]
    torch.testing.assert_close(moments, torch.eye(len(functions)).double(), atol=1e-5, rtol=0)


def test_errors_of_the_deviation_that_is_expected_are_as_large_as_that(errors):
    assert float(errors.deviation.square().sum().sqrt()) == pytest.approx(DEVIATION, rel=1e-5)
    noise = complex_noise(200, len(errors.deviation))
    drawn = errors.maps(errors.deviation * noise)
    assert float(drawn.abs().square().mean().sqrt()) == pytest.approx(DEVIATION, rel=0.1)


def test_errors_change_over_the_length_that_is_expected(errors):
    """Correlated within half of it, and not at twice; the edges, where cosines are mirrored, left out."""
    drawn = errors.maps(errors.deviation * complex_noise(300, len(errors.deviation)))
    middle, pixels = drawn[:, 12, 15], LENGTH_MM / (FOV_MM[1] / SHAPE[1])

    def correlation(lengths: float) -> float:
        other = drawn[:, 12, 15 + round(lengths * pixels)]
        return float((middle.conj() * other).sum().real / (middle.norm() * other.norm()))

    assert correlation(0.5) > 0.7
    assert abs(correlation(2)) < 0.35


@pytest.mark.parametrize("shape", [(24, 30), (25, 31), (1, 6)])
def test_halved_are_the_same_functions_on_larger_pixels(shape):
    errors = CoilErrors.smooth(shape, FOV_MM)
    half, (y, x) = errors.halved, (halved(n) for n in shape)
    assert torch.equal(half.functions, errors.functions[:, y, x])
    assert torch.equal(half.deviation, errors.deviation)
    coefficients = complex_noise(COILS, len(errors.deviation))
    torch.testing.assert_close(half.maps(coefficients), errors.maps(coefficients)[:, y, x])


def test_transpose_is_the_adjoint_of_the_maps(errors):
    coefficients = complex_noise(COILS, len(errors.deviation), dtype=torch.complex128)
    images = complex_noise(COILS, *SHAPE, seed=1, dtype=torch.complex128)
    forth = (images.conj() * errors.maps(coefficients)).sum()
    back = (errors.transpose(images).conj() * coefficients).sum()
    assert abs(complex(forth - back)) < 1e-10 * abs(complex(forth))


def test_each_coil_errs_by_itself(errors):
    coefficients = torch.zeros(COILS, len(errors.deviation), dtype=torch.complex64)
    coefficients[1, 3] = 0.2j
    maps = errors.maps(coefficients)
    torch.testing.assert_close(maps[1], 0.2j * errors.functions[3])
    assert not maps[[0, 2]].any()


def test_a_wider_field_of_view_needs_more_functions():
    few, more = (len(CoilErrors.smooth((64, 64), (mm, mm)).deviation) for mm in (120.0, 240.0))
    assert 3 * few < more < 5 * few


def test_none_are_maps_that_are_right():
    none = CoilErrors.none(SHAPE)
    assert (tuple(none.functions.shape), tuple(none.deviation.shape)) == ((0, *SHAPE), (0,))
    assert not none.maps(torch.zeros(COILS, 0, dtype=torch.complex64)).any()
    assert none.transpose(complex_noise(COILS, *SHAPE)).shape == (COILS, 0)
    assert none.halved.functions.shape == (0, SHAPE[0] // 2, SHAPE[1] // 2)


def test_a_smooth_error_is_a_sum_of_few_functions(errors):
    """Such as a Gaussian blob, as wide as errors are expected to be."""
    y, x = ((torch.arange(n) + 0.5 - n / 2) * (mm / n) for n, mm in zip(SHAPE, FOV_MM, strict=True))
    blob = torch.exp(-((y[:, None] - 10) ** 2 + (x + 20) ** 2) / (2 * LENGTH_MM**2)).to(torch.complex64)[None]
    fitted = errors.maps(errors.transpose(blob) / math.prod(SHAPE))
    assert relative(fitted - blob, blob) < 0.02


N = 48
MAPS = ring_of_coils(N, 6).to(torch.complex64)


def disc(radius: float) -> torch.Tensor:
    """With stripes, in fields of view."""
    y, x = torch.meshgrid(positions(N), positions(N), indexing="ij")
    return ((y.square() + x.square() < radius**2) * (1 + 0.5 * torch.cos(7 * x + 5 * y))).float()


def from_the_centre(image: torch.Tensor) -> torch.Tensor:
    """ESPIRiT's maps of 16 x 16 points of k-space, with noise of one percent."""
    centre = resize_centred(fft_centred(MAPS * image, (1, 2)), (16, 16))
    return espirit(centre + 0.01 * centre.abs().mean() * complex_noise(*centre.shape), (N, N), crop=0.0)


def missed(maps: torch.Tensor, image: torch.Tensor) -> float:
    """Of what the coils see of it, with the best common phase in each pixel."""
    common = (MAPS.conj() * maps).sum(0)
    return relative(image * (maps * torch.exp(-1j * common.angle()) - MAPS), image * MAPS)


@pytest.mark.parametrize(("radius", "part"), [(0.4, 0.95), (0.49, 0.65), (0.6, 0.4)])
def test_maps_that_repeat_are_continued_to_where_the_object_goes(radius, part):
    image = disc(radius)
    repeated = from_the_centre(image)
    continued = CoilErrors.smooth((N, N), (200.0, 200.0)).continued(repeated, image > 0)
    assert missed(continued, image) < part * missed(repeated, image)
    torch.testing.assert_close(continued.abs().square().sum(0), torch.ones(N, N))


def test_maps_of_nothing_stay_nothing():
    maps = MAPS.clone()
    maps[:, :10] = 0
    continued = CoilErrors.smooth((N, N), (200.0, 200.0)).continued(maps, disc(0.4) > 0)
    assert not continued[:, :10].any()
    assert relative((continued - maps)[:, 16:32, 16:32], maps[:, 16:32, 16:32]) < 0.02
