import math

import pytest
import torch

from recon_core.operators.cartesian import CartesianSampling
from recon_core.operators.encoding import Encoding
from recon_core.operators.linear_model import LinearModel
from recon_core.operators.nufft import Nufft
from recon_core.operators.sampling import sampling_operator

from analytic import complex_noise, direct_sum, grid_trajectory, random_trajectory, relative

SHAPES = [(16, 16), (15, 22), (9, 7), (2, 3), (1, 12), (6, 8, 7), (3, 10, 9)]


def some_grid_points(shape):
    """A third of the grid, and some of it again, out of order."""
    points = grid_trajectory(shape).flatten(1)
    order = torch.randperm(points.shape[1], generator=torch.Generator().manual_seed(0))
    chosen = torch.cat([order[::3], order[:4], order[:2]])
    return points[:, chosen][:, None]


KINDS = [(random_trajectory, Nufft), (some_grid_points, CartesianSampling)]
CASES = [
    pytest.param(make(shape), shape, kind, id=f"{kind.__name__}-{shape}") for shape in SHAPES for make, kind in KINDS
]


def normal(sampling, image):
    """By Toeplitz kernels."""
    return LinearModel(Encoding(sampling), torch.ones(1, *sampling.shape)).normal(image)


@pytest.mark.parametrize(("trajectory", "shape", "kind"), CASES)
def test_forward_is_the_direct_sum(trajectory, shape, kind):
    sampling = sampling_operator(trajectory, shape)
    assert type(sampling) is kind
    image = complex_noise(2, *shape)
    truth = direct_sum(image, trajectory)
    assert relative(sampling.forward(image) - truth, truth) < 2e-5


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize(("trajectory", "shape", "kind"), CASES)
def test_adjoint(trajectory, shape, kind, dtype):
    sampling = kind(trajectory, shape)
    image = complex_noise(*shape, dtype=dtype)
    kspace = complex_noise(*trajectory.shape[1:], seed=1, dtype=dtype)
    there = torch.vdot(kspace.flatten(), sampling.forward(image).flatten())
    back = torch.vdot(sampling.adjoint(kspace).flatten(), image.flatten())
    assert sampling.adjoint(kspace).dtype == dtype
    assert abs(there - back) < 1e2 * torch.finfo(dtype).eps * kspace.norm() * image.norm()


@pytest.mark.parametrize(("trajectory", "shape", "kind"), CASES)
def test_normal_is_adjoint_of_forward(trajectory, shape, kind):
    sampling = kind(trajectory, shape)
    image = complex_noise(3, *shape)
    twice = sampling.adjoint(sampling.forward(image))
    assert relative(normal(sampling, image) - twice, twice) < 2e-5


@pytest.mark.parametrize("kind", [Nufft, CartesianSampling])
def test_leading_axes_are_batch_axes(kind):
    sampling = kind(some_grid_points((6, 5)), (6, 5))
    images = complex_noise(2, 3, 6, 5)
    samples = sampling.forward(images)
    assert samples.shape == (2, 3, *sampling.trajectory.shape[1:])
    torch.testing.assert_close(samples[1, 2], sampling.forward(images[1, 2]))
    torch.testing.assert_close(sampling.adjoint(samples)[1, 2], sampling.adjoint(samples[1, 2]))
    torch.testing.assert_close(normal(sampling, images)[1, 2], normal(sampling, images[1, 2]))


def test_a_point_at_the_positive_end_of_k_space_is_a_nufft_point():
    trajectory = torch.tensor([[[4.0, 4.5, -4.5]], [[0.0, 1.0, 2.5]]])
    image = complex_noise(8, 8)
    error = sampling_operator(trajectory, (8, 8)).forward(image) - direct_sum(image, trajectory)
    assert error.abs().max() < 2e-5 * image.norm()


def test_nearly_whole_points_are_taken_as_whole():
    trajectory = grid_trajectory((6, 6))
    assert isinstance(sampling_operator(trajectory + 5e-4, (6, 6)), CartesianSampling)
    assert isinstance(sampling_operator(trajectory - 5e-3, (6, 6)), Nufft)


def test_both_kinds_agree_on_the_grid():
    trajectory, image = some_grid_points((10, 12)), complex_noise(10, 12)
    exact = CartesianSampling(trajectory, (10, 12))
    assert relative(Nufft(trajectory, (10, 12)).forward(image) - exact.forward(image), exact.forward(image)) < 2e-5


def test_cartesian_refuses_points_off_its_grid():
    with pytest.raises(ValueError, match="does not lie on the FFT grid"):
        CartesianSampling(torch.full((2, 1, 1), 0.5), (4, 4))
    with pytest.raises(ValueError, match="does not lie on the FFT grid"):
        CartesianSampling(torch.full((2, 1, 1), 2.0), (4, 4))


@pytest.mark.parametrize(
    ("trajectory", "shape", "message"),
    [
        (torch.zeros(2, 3, 4), (8, 8, 8), r"\[3, shot, sample\], got \[2, 3, 4\]"),
        (torch.zeros(2, 12), (8, 8), r"\[2, shot, sample\], got \[2, 12\]"),
        (torch.zeros(2, 0, 5), (8, 8), r"got \[2, 0, 5\]"),
        (torch.zeros(1, 3, 4), (8,), r"image shape \(y, x\) or \(z, y, x\), got \(8,\)"),
        (torch.zeros(2, 3, 4), (8, 0), r"image shape"),
        (torch.full((2, 3, 4), math.nan), (8, 8), "not finite"),
        (torch.full((2, 3, 4), math.inf), (8, 8), "not finite"),
        (torch.full((2, 3, 4), 4.6), (8, 16), "4.6 cycles per field of view on axis 0, but an image of 8 pixels"),
        (torch.full((2, 3, 4), -4.6), (16, 8), "on axis 1"),
    ],
)
def test_refusals(trajectory, shape, message):
    with pytest.raises(ValueError, match=message):
        sampling_operator(trajectory, shape)
