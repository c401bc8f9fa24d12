"""Each implementation of the non-uniform Fourier transform by itself."""

import threading

import pytest
import torch

from recon_core.operators import nufft, nufft_finufft
from recon_core.operators.nufft import Nufft
from recon_core.operators.nufft_finufft import FinufftPlan
from recon_core.operators.nufft_kaiser_bessel import MatrixPlan, TablePlan

from analytic import complex_noise, direct_sum, random_trajectory, relative

SHAPES = [(15, 22), (2, 3), (1, 12), (6, 8, 7)]
ACCURACY = {FinufftPlan: 1e-5, MatrixPlan: 2e-5, TablePlan: 1e-4}

needs_finufft = pytest.mark.skipif(not nufft_finufft.AVAILABLE, reason="needs finufft")


@pytest.fixture(params=[pytest.param(FinufftPlan, marks=needs_finufft), MatrixPlan, TablePlan])
def kind(request, monkeypatch):
    """Of the plans that a Nufft makes in this test."""
    monkeypatch.setattr(nufft_finufft, "AVAILABLE", request.param is FinufftPlan)
    monkeypatch.setattr(nufft, "MATRIX_ENTRIES", 0 if request.param is TablePlan else nufft.MATRIX_ENTRIES)
    return request.param


@pytest.mark.parametrize("shape", SHAPES)
def test_forward_is_the_direct_sum(kind, shape):
    trajectory, images = random_trajectory(shape), complex_noise(5, *shape)
    sampling = Nufft(trajectory, shape)
    truth = direct_sum(images, trajectory)
    assert relative(sampling.forward(images) - truth, truth) < ACCURACY[kind]
    assert type(sampling._plan(images.dtype)) is kind


@pytest.mark.parametrize("shape", SHAPES)
def test_adjoint_agrees_with_forward(kind, shape):
    sampling = Nufft(random_trajectory(shape), shape)
    images, kspace = complex_noise(2, *shape), complex_noise(2, *sampling.trajectory.shape[1:], seed=1)
    there = torch.vdot(kspace.flatten(), sampling.forward(images).flatten())
    back = torch.vdot(sampling.adjoint(kspace).flatten(), images.flatten())
    assert abs(there - back) < 1e-5 * kspace.norm() * images.norm()


def test_gradients_are_those_of_a_linear_map(kind):
    """Of |F x - y|^2 and |F^H z - x|^2, whose gradients are 2 F^H (F x - y) and 2 F (F^H z - x)."""
    shape = (6, 5)
    sampling = Nufft(random_trajectory(shape, 2, 9), shape)
    image, kspace = complex_noise(3, *shape).requires_grad_(), complex_noise(3, 2, 9, seed=1).requires_grad_()
    (sampling.forward(image) - kspace.detach()).abs().square().sum().backward()
    expected = 2 * sampling.adjoint(sampling.forward(image.detach()) - kspace.detach())
    torch.testing.assert_close(image.grad, expected, rtol=1e-4, atol=1e-4)
    (sampling.adjoint(kspace) - image.detach()).abs().square().sum().backward()
    expected = 2 * sampling.forward(sampling.adjoint(kspace.detach()) - image.detach())
    torch.testing.assert_close(kspace.grad, expected, rtol=1e-4, atol=1e-4)


def test_views_are_read_as_what_they_show(kind):
    shape = (6, 8)
    sampling = Nufft(random_trajectory(shape), shape)
    images = complex_noise(2, 8, 6).transpose(-1, -2).conj()
    truth = direct_sum(images, sampling.trajectory)
    assert relative(sampling.forward(images) - truth, truth) < ACCURACY[kind]


def test_precision_must_be_that_of_a_complex_number(kind):
    sampling = Nufft(random_trajectory((6, 6)), (6, 6))
    with pytest.raises(TypeError, match=r"complex64 or complex128, got torch\.float32"):
        sampling.forward(torch.zeros(6, 6))


def test_memory_is_that_of_the_trajectory_until_a_transform_is_asked_for(kind):
    sampling = Nufft(random_trajectory((16, 16), 10, 1000), (16, 16))
    assert sampling.nbytes == sampling.trajectory.nbytes
    sampling.forward(complex_noise(16, 16))
    single = sampling.nbytes - sampling.trajectory.nbytes
    # Coordinates; with finufft, their order besides; as a matrix, 36 complex values and columns each, twice.
    least = {FinufftPlan: 10_000 * 16, TablePlan: 10_000 * 8, MatrixPlan: 10_000 * 36 * 2 * 12}[kind]
    assert least <= single < 2 * least + 2**22
    sampling.forward(complex_noise(16, 16, dtype=torch.complex128))
    assert sampling.nbytes > sampling.trajectory.nbytes + 2 * single


@needs_finufft
@pytest.mark.parametrize("shape", SHAPES)
def test_double_precision_is_used(shape):
    trajectory, image = random_trajectory(shape).double(), complex_noise(*shape, dtype=torch.complex128)
    truth = direct_sum(image, trajectory)
    assert relative(Nufft(trajectory, shape).forward(image) - truth, truth) < 1e-11


@needs_finufft
def test_threads_may_share_one_operator():
    shape = (32, 32)
    sampling = Nufft(random_trajectory(shape, 10, 500), shape)
    images = [complex_noise(3, *shape, seed=seed) for seed in range(8)]
    truths = [direct_sum(image, sampling.trajectory) for image in images]
    errors = [1.0] * len(images)

    def work(i):
        for _ in range(20):
            errors[i] = relative(sampling.forward(images[i]) - truths[i], truths[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(errors) < 1e-5
