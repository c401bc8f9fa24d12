"""Losses against errors that are known by formula: linear denoisers of white Gaussian images, and soft thresholds."""

import math
import subprocess
import sys

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch import nn

from recon_core.priors.unet import UNet, UNetConfig
from recon_core.training.objectives import STEIN_WEIGHT, clean_loss, stein_estimate, sure_loss

SIGNAL, NOISE = 0.5, 0.2


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed))


def every(level, count):
    return torch.full((count,), level)


def wiener(signal, sigma):
    """Gain of the best denoiser of white images."""
    return signal**2 / (signal**2 + sigma**2)


class Gains(nn.Module):
    """Multiplies images by a gain for each noise level; all levels weigh the same."""

    def __init__(self, gains):
        super().__init__()
        self.levels = torch.tensor(list(gains))
        self.gain = nn.Parameter(torch.tensor(list(gains.values())))

    def forward(self, image, sigma):
        which = (sigma[:, None] - self.levels).abs().argmin(1)
        return self.gain[which][:, None, None, None] * image

    def weight(self, sigma):
        return torch.ones_like(sigma)

    def learnt(self):
        return dict(zip(self.levels.tolist(), self.gain.tolist(), strict=True))


def blurred(image, sigma):
    """Circular mean over 3 x 3 pixels, weighted binomially."""
    for axis in (-1, -2):
        image = image / 2 + image.roll(1, axis) / 4 + image.roll(-1, axis) / 4
    return image


def thresholded(image, sigma):
    return image.sign() * (image.abs() - sigma[:, None, None, None]).clamp_min(0)


def random_network():
    """A small U-Net whose weights are all random: neither identity nor trained."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = UNet(UNetConfig((8, 8, 16)))
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.5 / math.sqrt(parameter[0].numel()))
    return network.requires_grad_(False)


def mean_estimate(denoiser, clean, sigma, draws):
    """Stein's estimates and true errors, each the mean over draws of the noise."""
    estimates, errors = [], []
    for seed in range(draws):
        noisy = clean + sigma[:, None, None, None] * normal(*clean.shape, seed=100 + seed)
        estimate, denoised = stein_estimate(denoiser, noisy, sigma, generator(1000 + seed))
        estimates.append(estimate)
        errors.append((denoised - clean).square().mean((1, 2, 3)))
    return torch.stack(estimates).mean(0), torch.stack(errors).mean(0)


def test_stein_estimates_the_error_of_a_blur():
    clean, sigma = blurred(blurred(normal(3, 2, 128, 128), None), None), torch.tensor([0.05, 0.2, 1.0])
    estimate, _ = mean_estimate(blurred, clean, sigma, draws=20)
    # Bias, and the share of the noise that the blur lets through: the sum of its squared weights.
    expected = (blurred(clean, None) - clean).square().mean((1, 2, 3)) + sigma**2 * (3 / 8) ** 2
    torch.testing.assert_close(estimate, expected, rtol=0.02, atol=0)


def test_stein_estimates_the_error_of_a_soft_threshold():
    clean = (normal(1, 2, 128, 128) > 1.5).float().expand(2, -1, -1, -1)
    sigma = torch.tensor([0.25, 0.8])
    filled = float(clean.mean())

    def risk(truth, s):
        def squared_error(y):
            return (math.copysign(max(abs(y) - s, 0), y) - truth) ** 2 * norm.pdf(y, truth, s)

        return quad(squared_error, truth - 9 * s, truth + 9 * s, points=[-s, s])[0]

    expected = torch.tensor([filled * risk(1, s) + (1 - filled) * risk(0, s) for s in sigma.tolist()])
    estimate, _ = mean_estimate(thresholded, clean, sigma, draws=20)
    torch.testing.assert_close(estimate, expected, rtol=0.02, atol=0)


def test_stein_estimates_the_error_of_a_network():
    clean, sigma = torch.zeros(2, 2, 104, 104), torch.tensor([0.15, 0.3])
    clean[:, :, 20:70, 30:90] = 0.7
    clean[:, 1, 40:60] = -0.4
    estimate, error = mean_estimate(random_network(), clean, sigma, draws=6)
    assert (error / sigma**2 - 1).abs().min() > 0.05  # neither the noise itself ...
    assert (error / clean.square().mean((1, 2, 3)) - 1).abs().min() > 0.05  # ... nor all of the image is left
    torch.testing.assert_close(estimate, error, rtol=0.02, atol=0)


def test_nothing_of_torch_is_told_to_the_user():
    code = """
import torch
from recon_core.training.objectives import stein_estimate
stein_estimate(lambda x, sigma: x / 2, torch.ones(1, 2, 4, 4), torch.ones(1), torch.Generator())
"""
    strict = "error:`torch.jit.script` is deprecated:DeprecationWarning"
    subprocess.run([sys.executable, "-W", strict, "-c", code], check=True)


def test_the_divergence_is_the_derivative_along_the_probe():
    network = random_network().double()
    noisy, sigma = normal(2, 2, 24, 20).double(), torch.tensor([0.1, 0.5]).double()
    estimate, denoised = stein_estimate(network, noisy, sigma, generator(5))
    torch.testing.assert_close(denoised, network(noisy, sigma))
    probe = torch.randint(2, noisy.shape, generator=generator(5)) * 2.0 - 1
    step = 1e-6
    difference = (network(noisy + step * probe, sigma) - network(noisy - step * probe, sigma)) / (2 * step)
    divergence = (probe * difference).mean((1, 2, 3))
    expected = (denoised - noisy).square().mean((1, 2, 3)) + sigma**2 * (2 * divergence - 1)
    torch.testing.assert_close(estimate, expected, rtol=1e-6, atol=0)


def test_bfloat16_leaves_the_estimate_and_its_gradient(monkeypatch):
    clean, sigma = torch.zeros(2, 2, 64, 64), torch.tensor([0.1, 0.3])
    clean[:, :, 10:40, 20:50] = 0.8
    noisy = clean + sigma[:, None, None, None] * normal(*clean.shape)

    def estimate_and_gradient(network):
        network.requires_grad_(True)
        estimate, _ = stein_estimate(network, noisy, sigma, generator())
        estimate.sum().backward()
        return estimate.detach(), torch.cat([p.grad.flatten() for p in network.parameters()])

    monkeypatch.setattr("recon_core.priors.unet.bfloat16_pays", lambda device, dtype: False)
    single, gradient = estimate_and_gradient(random_network())
    monkeypatch.setattr("recon_core.priors.unet.bfloat16_pays", lambda device, dtype: True)
    rounded, rough_gradient = estimate_and_gradient(random_network())
    assert not torch.equal(single, rounded)
    torch.testing.assert_close(rounded, single, rtol=0.01, atol=0)
    assert torch.cosine_similarity(rough_gradient, gradient, dim=0) > 0.999


@pytest.mark.parametrize("gain", [0.0, 1.0, wiener(SIGNAL, 0.3), 0.3])
def test_clean_loss_is_the_mean_square_error(gain):
    denoiser, clean = Gains({0.3: gain}), SIGNAL * normal(16, 2, 64, 64)
    expected = (1 - gain) ** 2 * SIGNAL**2 + gain**2 * 0.3**2
    assert clean_loss(denoiser, clean, every(0.3, 16), generator(1)).item() == pytest.approx(expected, rel=0.02)


def test_every_image_has_its_own_level_and_weight():
    class Identity(Gains):
        def weight(self, sigma):
            return 1 / sigma**3

    sigma = torch.tensor([0.1, 0.2, 0.4])
    loss = clean_loss(Identity({0.1: 1.0}), normal(3, 2, 128, 128), sigma, generator(1))
    assert loss.item() == pytest.approx(float((1 / sigma).mean()), rel=0.02)


def gradients(sigma, gains, draws=24, count=32):
    """Mean gradient of the loss from noisy images for each gain, and the standard error of that mean."""
    found = []
    for seed in range(draws):
        denoiser = Gains(gains)
        noisy = SIGNAL * normal(count, 2, 32, 32, seed=seed) + NOISE * normal(count, 2, 32, 32, seed=100 + seed)
        sure_loss(denoiser, noisy, every(NOISE, count), every(sigma, count), generator(200 + seed)).backward()
        found.append(denoiser.gain.grad)
    all_found = torch.stack(found)
    return all_found.mean(0).tolist(), (all_found.std(0) / math.sqrt(draws)).tolist()


def clean_gradient(gain, sigma, signal=SIGNAL):
    """Of the expected loss from clean white images of standard deviation `signal`."""
    return 2 * gain * (signal**2 + sigma**2) - 2 * signal**2


@pytest.mark.parametrize("gain", [0.2, wiener(SIGNAL, NOISE), 1.3])
@pytest.mark.parametrize("sigma", [0.25, 0.6, 5.0])
def test_above_the_noise_both_losses_have_the_same_gradient(sigma, gain):
    """But for a factor that depends on the levels alone: the share of the noise that was added."""
    mean, error = gradients(sigma, {NOISE: gain, sigma: gain})
    assert abs(mean[0] - STEIN_WEIGHT * clean_gradient(gain, NOISE)) < 4 * error[0]
    share = 1 - (NOISE / sigma) ** 2
    assert abs(mean[1] - share**2 * clean_gradient(gain, sigma)) < 4 * error[1]
    # The Monte-Carlo error is small enough to tell: it may hide no more than a hundredth of the best gain.
    assert 4 * error[1] < 0.02 * share**2 * clean_gradient(1 + wiener(SIGNAL, sigma), sigma)


@pytest.mark.parametrize("level", [0.8 * NOISE, 0.4 * NOISE])
def test_levels_below_the_noise_count_as_its_own(level):
    mean, error = gradients(level, {NOISE: 0.5, level: 0.5})
    assert mean[1] == 0
    assert abs(mean[0] - STEIN_WEIGHT * clean_gradient(0.5, NOISE)) < 4 * error[0]


def test_both_losses_train_the_wiener_filter():
    levels = [NOISE, 2 * NOISE, 0.6, 2.0]
    learnt = {}
    for name in ("clean", "sure"):
        denoiser = Gains(dict.fromkeys(levels, 0.5))
        optimiser = torch.optim.Adam(denoiser.parameters(), 0.05)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 200)
        for step in range(200):
            clean = SIGNAL * normal(32, 2, 16, 16, seed=2000 + step)
            sigma = denoiser.levels.repeat(8)
            if name == "clean":
                loss = clean_loss(denoiser, clean, sigma, generator(step))
            else:
                noisy = clean + NOISE * normal(32, 2, 16, 16, seed=1000 + step)
                loss = sure_loss(denoiser, noisy, every(NOISE, 32), sigma, generator(step))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            decay.step()
        learnt[name] = denoiser.learnt()
    for gains in learnt.values():
        for level, gain in gains.items():
            assert gain == pytest.approx(wiener(SIGNAL, level), abs=0.01)
