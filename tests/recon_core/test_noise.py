import math

import pytest
import torch

from recon_core.calibration.noise import noise_covariance, whitening_matrix

from analytic import complex_noise


def coloured_noise(coils: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise of a scanner's size, and its true covariance."""
    mixing = 1e-6 * (torch.eye(coils) + 0.4 * complex_noise(coils, coils, seed=3, dtype=torch.complex128))
    samples = mixing @ complex_noise(coils, count, dtype=torch.complex128)
    return samples.to(torch.complex64), mixing @ mixing.mH


def test_covariance_by_hand_keeps_the_mean():
    samples = torch.tensor([[1 + 1j, 2, 3j], [1, 1j, -1]], dtype=torch.complex64)
    truth = torch.tensor([[15, (1 + 1j) * 1 + 2 * -1j + 3j * -1], [0, 3]], dtype=torch.complex128) / 2
    truth[1, 0] = truth[0, 1].conj()
    torch.testing.assert_close(noise_covariance(samples), truth)


def test_covariance_of_many_samples_is_the_true_one():
    samples, truth = coloured_noise(5, 200_000)
    assert (noise_covariance(samples) - truth).abs().max() < 0.02 * truth.abs().max()


def test_whitened_noise_is_white_with_unit_variance():
    samples, _ = coloured_noise(8, 4000)
    whitening = whitening_matrix(noise_covariance(samples))
    assert whitening.dtype == torch.complex64
    assert whitening.triu(1).abs().max() == 0
    torch.testing.assert_close(
        noise_covariance(whitening @ samples), torch.eye(8, dtype=torch.complex128), atol=1e-5, rtol=0
    )


def test_too_few_samples():
    with pytest.raises(ValueError, match="more noise samples than the 6 coils, got 6"):
        noise_covariance(complex_noise(6, 6))


def test_samples_that_are_not_finite_or_have_no_coil_axis():
    with pytest.raises(ValueError, match="not finite"):
        noise_covariance(torch.full((2, 9), math.nan, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"\[coil, n\], got \[9\]"):
        noise_covariance(complex_noise(9))


def test_dead_coil_is_named():
    samples, _ = coloured_noise(4, 100)
    samples[2] = 0
    with pytest.raises(ValueError, match="coil 2 .* no noise"):
        whitening_matrix(noise_covariance(samples))


def test_coil_that_is_there_twice_is_named():
    samples, _ = coloured_noise(4, 100)
    samples[3] = 2j * samples[1]
    with pytest.raises(ValueError, match="noise of coil 3 .* combination"):
        whitening_matrix(noise_covariance(samples))


def test_matrix_that_is_no_covariance():
    indefinite = torch.tensor([[1, 2, 0], [2, 1, 0], [0, 0, 1]], dtype=torch.complex64)
    with pytest.raises(ValueError, match="noise of coil 1 .* combination"):
        whitening_matrix(indefinite)
    with pytest.raises(ValueError, match=r"\[coil, coil\], got \[2, 3\]"):
        whitening_matrix(torch.ones(2, 3))
    with pytest.raises(ValueError, match="not finite"):
        whitening_matrix(torch.full((2, 2), math.inf))
