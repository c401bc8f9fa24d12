import math

import pytest
import torch

from recon_core.priors.prior import Convention, Prior
from recon_core.training.corpus import Corpus
from recon_core.training.figures import LEVELS, calibration, denoising_figures, held_out, stein_figures

SIGNAL, NOISE = 0.5, 0.1
CONVENTION = Convention("maximum", 0.01, 10.0)


def white(edge=64, noise=0.0):
    """White Gaussian images, whose best denoiser is a factor."""
    images = torch.randn(8, edge, edge, 2, generator=torch.Generator().manual_seed(3))
    return Corpus([(math.hypot(SIGNAL, noise) * image).half() for image in images], torch.full((8,), noise))


def prior(factor=1.0):
    """The posterior mean of white images, which takes `factor` times the noise away."""

    def denoise(noisy, sigma):
        level = sigma[:, None, None, None] ** 2
        return noisy - factor * level / (level + SIGNAL**2) * noisy

    return Prior(denoise, CONVENTION, "white")


@pytest.mark.parametrize("factor", [1.0, 0.8, 1.25])
def test_the_calibration_of_the_posterior_mean_is_one(factor):
    figures = denoising_figures(prior(factor), white())
    for sigma in LEVELS:
        assert figures[f"calibration at noise {sigma:g}"] == pytest.approx(1 / factor, rel=0.03)


def test_the_calibration_is_a_slope():
    predicted = torch.randn(50, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    across = 1j * predicted  # at a right angle, as the error of a posterior mean is to it
    assert calibration(1.5 * predicted + 3 * across, predicted) == pytest.approx(1.5)


def test_psnr_is_of_the_peak_over_the_error_of_magnitudes():
    images = white()
    figures = denoising_figures(prior(), images)
    clean = held_out(images, 16)[0]
    for sigma in LEVELS:
        # Of magnitudes far from zero the noise is that of one channel; near it, where few pixels are, less.
        told = torch.tensor([20 * math.log10(float(image.abs().max()) / sigma) for image in clean]).mean()
        assert figures[f"PSNR at noise {sigma:g}, noisy"] == pytest.approx(float(told), abs=0.5)
        assert figures[f"PSNR at noise {sigma:g}, denoised"] > figures[f"PSNR at noise {sigma:g}, noisy"]


def test_the_error_of_noisy_images_is_estimated_without_the_truth():
    figures = stein_figures(prior(), white(noise=NOISE))
    assert figures["noise of the images, per channel"] == pytest.approx(NOISE)
    error = NOISE * SIGNAL / math.hypot(NOISE, SIGNAL)
    assert figures["estimated error of the denoised images, per channel"] == pytest.approx(error, rel=0.05)


def test_the_held_out_patches_are_the_same_each_time_and_no_larger_than_the_least_image():
    images = white(40) + white(64)
    first, again = held_out(images, 4)[0], held_out(images, 4)[0]
    assert torch.equal(first, again)
    assert first.shape == (4, 40, 40)
