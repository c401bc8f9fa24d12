import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from recon_core.priors.prior import Convention, NotFiniteError, Prior

from analytic import complex_noise

SIGNAL = 0.35
CONVENTION = Convention("percentile99", 0.01, 160.0)


def variances(shape):
    """Of white noise through a filter, at each point of k-space: smooth images, and not the same in y and x."""
    y, x = (torch.fft.fftfreq(n, dtype=torch.float64) for n in shape)
    return SIGNAL**2 / (0.02 + y[:, None] ** 2 + 3 * x**2)


def wiener(channels, sigma):
    """The mean of such images given noisy ones, for each real channel."""
    variance = variances(channels.shape[-2:]).to(channels)
    share = variance / (variance + sigma[:, None, None, None] ** 2)
    return torch.fft.ifft2(share * torch.fft.fft2(channels)).real


def gaussian(dtype=torch.complex128, shape=(12, 15)):
    """A draw from such images."""
    white = complex_noise(*shape, dtype=torch.complex128) * math.sqrt(2)
    return torch.fft.ifft2(variances(shape).sqrt() * torch.fft.fft2(white)).to(dtype)


def prior(denoiser=wiener, convention=CONVENTION):
    return Prior(denoiser, convention, "smooth images")


class Spy:
    """Keeps what the denoiser is asked."""

    def __call__(self, channels, sigma):
        self.channels, self.sigma = channels, sigma
        return 2 * channels


@pytest.mark.parametrize("shape", [(6, 5), (3, 6, 5), (2, 3, 6, 5), (1, 1, 1, 1)])
def test_complex_images_are_two_channels(shape):
    spy, image = Spy(), complex_noise(*shape)
    doubled = prior(spy).denoise(image, 0.1)
    assert spy.channels.shape == (math.prod(shape[:-2]), 2, *shape[-2:])
    assert spy.channels.is_contiguous()
    for k, single in enumerate(image.reshape(-1, *shape[-2:])):
        assert torch.equal(spy.channels[k, 0], single.real)
        assert torch.equal(spy.channels[k, 1], single.imag)
    assert torch.equal(doubled, 2 * image)


def only_real(channels, sigma):
    """A denoiser to which the phase is all: it leaves out imaginary parts."""
    return channels * torch.tensor([1.0, 0.0])[:, None, None]


def test_errors_that_depend_on_the_phase_differ_from_image_to_image_and_average_out():
    """Half of the image is left on average: its part along a line of random direction."""
    image = complex_noise(6, 5).expand(4000, 6, 5)
    turning = prior(only_real, replace(CONVENTION, any_phase=True))
    found = turning.denoise_in_any_phase(image, 0.1, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.mean(0), image[0] / 2, atol=0.1, rtol=0)
    along = torch.view_as_real(found[0] / image[0])
    assert (found - found[0]).abs().amax((-2, -1))[1:].min() > 0
    assert float((along - torch.tensor([0.5, 0.0])).norm(dim=-1).max()) == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("shape", [(6, 5), (3, 6, 5), (2, 3, 6, 5)])
def test_a_denoiser_that_no_phase_changes_is_not_disturbed_by_one(shape):
    image, generator = complex_noise(*shape, dtype=torch.complex128), torch.Generator().manual_seed(0)
    turning = prior(convention=replace(CONVENTION, any_phase=True))
    found = turning.denoise_in_any_phase(image, 0.1, generator)
    torch.testing.assert_close(found, turning.denoise(image, 0.1))


def test_where_the_phase_matters_it_is_left_alone():
    image, generator = complex_noise(3, 6, 5), torch.Generator().manual_seed(0)
    found = prior(only_real).denoise_in_any_phase(image, 0.1, generator)
    assert torch.equal(found, prior(only_real).denoise(image, 0.1))


def test_one_noise_level_serves_all_images_and_several_one_each():
    spy, image = Spy(), complex_noise(2, 3, 6, 5)
    prior(spy).denoise(image, 0.25)
    assert spy.sigma.tolist() == [0.25] * 6
    prior(spy).denoise(image, torch.tensor(2.0))
    assert spy.sigma.tolist() == [2] * 6
    levels = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    prior(spy).denoise(image, levels)
    assert spy.sigma.tolist() == [1, 2, 3, 4, 5, 6]
    prior(spy).denoise(image[0, 0], torch.tensor(3.0))
    assert spy.sigma.tolist() == [3]


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_each_image_is_denoised_as_if_alone(dtype):
    images = torch.stack([gaussian(dtype), complex_noise(12, 15, dtype=dtype)])
    levels = torch.tensor([0.1, 2.0])
    together = prior().denoise(images, levels)
    assert together.dtype == dtype
    for k in range(2):
        torch.testing.assert_close(together[k], prior().denoise(images[k], float(levels[k])))


def test_views_of_all_sorts_are_taken():
    image = gaussian()
    expected = prior().denoise(image.conj().resolve_conj().T.contiguous(), 0.3)
    torch.testing.assert_close(prior().denoise(image.conj().T, 0.3), expected)
    torch.testing.assert_close(prior().denoise(image.mH[None].expand(2, -1, -1), 0.3), expected.expand(2, -1, -1))


@pytest.mark.parametrize("sigma", [0.02, 0.3, 5.0])
def test_the_score_is_that_of_gaussian_images(sigma):
    """The gradient of the log density of noisy images, by its formula: minus the image over its variance."""
    image = gaussian() + sigma * math.sqrt(2) * complex_noise(12, 15, seed=1, dtype=torch.complex128)
    expected = torch.fft.ifft2(-torch.fft.fft2(image) / (variances((12, 15)) + sigma**2))
    torch.testing.assert_close(prior().score(image, sigma), expected)
    both = prior().score(torch.stack([image, 2 * image]), torch.tensor([sigma, 2 * sigma]))
    torch.testing.assert_close(both[0], expected)
    torch.testing.assert_close(both[1], prior().score(2 * image, 2 * sigma))


@pytest.mark.parametrize("t", [1, 20, 300, 1000])
def test_the_predicted_noise_is_that_of_the_variance_preserving_process(t):
    """By the schedule of DDPM, and by the mean of the noise in `alpha x + sigma noise` for Gaussian images."""
    kept = math.prod(1 - beta for beta in np.linspace(1e-4, 0.02, 1000)[:t])
    alpha, sigma = math.sqrt(kept), math.sqrt(1 - kept)
    image = alpha * gaussian() + sigma * math.sqrt(2) * complex_noise(12, 15, seed=1, dtype=torch.complex128)
    share = sigma / (alpha**2 * variances((12, 15)) + sigma**2)
    expected = torch.fft.ifft2(share * torch.fft.fft2(image))
    predicted = prior().predicted_noise(image, alpha, sigma)
    torch.testing.assert_close(predicted, expected)


def test_the_schedule_of_ddpm_lies_within_the_levels():
    """Its ends are known: 0.0100 and 157.4 of a unit image."""
    kept = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    levels = np.sqrt((1 - kept) / kept)
    assert levels[[0, -1]] == pytest.approx([0.0100, 157.4], rel=1e-3)
    for level in levels[[0, -1]]:
        prior().denoise(gaussian(), float(level))


def test_gradients_flow_through():
    image = gaussian().requires_grad_()
    along = complex_noise(12, 15, seed=2, dtype=torch.complex128)
    prior().denoise(image, 0.3).backward(along)
    # The Wiener filter is its own adjoint.
    torch.testing.assert_close(image.grad, prior().denoise(along, 0.3))


def test_a_network_computes_in_its_own_precision():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.tensor(2.0))

        def forward(self, channels, sigma):
            assert channels.dtype == sigma.dtype == torch.float32
            return self.gain * channels

    doubled = prior(Network()).denoise(gaussian(), 0.1)
    assert doubled.dtype == torch.complex128
    torch.testing.assert_close(doubled, 2 * gaussian(), rtol=0, atol=1e-6)


class Halves(nn.Module):
    def forward(self, channels, sigma):
        return channels / 2


def test_a_module_without_weights_computes_in_the_images_precision():
    image = gaussian()
    assert torch.equal(prior(Halves()).denoise(image, 0.1), image / 2)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.ones(4, 5), r"complex image \[..., y, x\], got torch.float32 \[4, 5\]"),
        (torch.ones(2, 4, 5), r"got torch.float32 \[2, 4, 5\]"),
        (torch.ones(4, dtype=torch.complex64), r"got torch.complex64 \[4\]"),
        (torch.ones(0, 4, dtype=torch.complex64), r"got torch.complex64 \[0, 4\]"),
        (torch.ones(0, 4, 4, dtype=torch.complex64), r"got torch.complex64 \[0, 4, 4\]"),
    ],
)
def test_images_that_are_none_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        prior().denoise(image, 0.1)


@pytest.mark.parametrize("value", [math.nan, math.inf, complex(0, -math.inf)])
def test_images_that_are_not_finite_are_refused(value):
    image = complex_noise(2, 4, 5)
    image[1, 2, 3] = value
    with pytest.raises(NotFiniteError, match="expected a finite image, got 1 of 40 pixels that are not"):
        prior().denoise(image, 0.1)


def test_images_whose_sum_is_beyond_their_precision_are_taken():
    image = torch.full((4, 5), 2e38, dtype=torch.complex64)
    assert torch.isfinite(prior(lambda channels, sigma: channels).denoise(image, 0.1)).all()


def test_a_denoiser_that_returns_another_shape_is_named():
    for denoiser, got in ((lambda c, s: c[:, :1], r"\[3, 1, 4, 5\]"), (lambda c, s: c[0], r"\[2, 4, 5\]")):
        with pytest.raises(ValueError, match=rf"smooth images: .* return \[3, 2, 4, 5\], got {got}"):
            prior(denoiser).denoise(complex_noise(3, 4, 5), 0.1)


def test_a_network_on_another_device_is_named():
    with pytest.raises(ValueError, match="smooth images is on meta, the image on cpu"):
        prior(nn.Conv2d(2, 2, 1, device="meta")).denoise(complex_noise(4, 5), 0.1)


@pytest.mark.parametrize(
    ("sigma", "got"),
    [
        (0.0099, "0.0099 to 0.0099"),
        (161.0, "161 to 161"),
        (0.0, "0 to 0"),
        (-0.1, "-0.1 to -0.1"),
        (math.nan, "nan to nan"),
        (torch.tensor([0.1, 200.0]), "0.1 to 200"),
        (torch.tensor([0.1, math.nan]), "nan to nan"),
    ],
)
def test_unknown_levels_are_refused(sigma, got):
    with pytest.raises(
        ValueError, match=f"smooth images knows noise levels from 0.01 to 160 of a unit image, got {got}"
    ):
        prior().denoise(complex_noise(2, 4, 5), sigma)


def test_levels_at_the_ends_may_be_rounded():
    ends = torch.tensor([0.01 * (1 - 1e-6), 160 * (1 + 1e-6)])
    for image in (complex_noise(2, 4, 5), complex_noise(2, 4, 5, dtype=torch.complex128)):
        assert torch.isfinite(prior().denoise(image, ends)).all()


@pytest.mark.parametrize("levels", [torch.ones(2), torch.ones(3, 1), torch.ones(1)])
def test_other_numbers_of_levels_are_refused(levels):
    with pytest.raises(ValueError, match=r"expected one noise level or \[3\] of them, got \["):
        prior().denoise(complex_noise(3, 4, 5), levels)


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (64, 50), (300, 257)])
def test_the_percentile_is_that_of_numpy_within_a_rank(size):
    image = complex_noise(3, *size)
    units = CONVENTION.unit(image)
    assert units.shape == (3,)
    for unit, single in zip(units, image, strict=True):
        magnitudes = np.sort(np.abs(single.numpy()).ravel())
        rank = np.searchsorted(magnitudes, float(unit) * (1 - 1e-6))
        assert magnitudes[rank] == pytest.approx(float(unit))
        exact = np.percentile(magnitudes, 99)
        assert magnitudes[max(rank - 1, 0)] <= exact <= magnitudes[min(rank + 1, len(magnitudes) - 1)]


def test_large_images_have_a_percentile_too():
    """Larger than torch's own quantiles take."""
    image = torch.arange(4200 * 4100, dtype=torch.float32).reshape(4200, 4100)
    assert float(CONVENTION.unit(image)) == pytest.approx(0.99 * image.numel(), rel=1e-5)


@pytest.mark.parametrize("scale", ["percentile99", "maximum"])
def test_units_grow_with_the_image_and_come_one_each(scale):
    convention = Convention(scale, 0.01, 1)
    image = complex_noise(2, 3, 20, 30)
    units = convention.unit(image)
    assert units.shape == (2, 3)
    torch.testing.assert_close(convention.unit(-3j * image), 3 * units)
    torch.testing.assert_close(convention.unit(image.abs()), units)
    torch.testing.assert_close(convention.unit(image[1, 2]), units[1, 2])


def test_the_maximum_is_of_magnitudes():
    image = torch.tensor([[3 + 4j, 1], [-2, 0]])
    assert float(Convention("maximum", 0.01, 1).unit(image)) == 5


@pytest.mark.parametrize("scale", ["percentile99", "maximum"])
@pytest.mark.parametrize("spoil", ["zero", "nan", "inf", "one nan"])
def test_images_without_a_scale_are_refused(scale, spoil):
    image = complex_noise(2, 20, 20)
    if spoil == "zero":
        image[1] = 0
    elif spoil == "one nan":
        image[1, 3, 3] = math.nan
    else:
        image[1] = float(spoil)
    with pytest.raises(ValueError, match="zero or not finite cannot be scaled"):
        Convention(scale, 0.01, 1).unit(image)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("mean", 0.1, 1), "scale .percentile99. or .maximum., got 'mean'"),
        (("maximum", 0, 1), "0 < lowest < highest, got 0 and 1"),
        (("maximum", 1, 1), "got 1 and 1"),
        (("maximum", math.nan, 1), "got nan and 1"),
    ],
)
def test_conventions_that_mean_nothing_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Convention(*wrong)
