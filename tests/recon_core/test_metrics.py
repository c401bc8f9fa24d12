import math

import pytest
import torch

from recon_core.metrics import coverage, error_correlation, nmse, nrmse, psnr, ssim

from analytic import complex_noise


def test_nrmse_by_hand():
    reference = torch.tensor([3.0, 4j])
    image = torch.tensor([3.0, 3j])
    assert nrmse(image, reference, scale=False) == pytest.approx(0.2)
    assert nrmse(image, reference) == pytest.approx(math.sqrt(1 - 21**2 / (18 * 25)))


def test_nrmse_does_not_see_a_complex_scale():
    reference = complex_noise(9, 9)
    assert nrmse((2 - 3j) * reference, reference) == pytest.approx(0, abs=1e-6)
    assert nrmse(2 * reference, reference, scale=False) == pytest.approx(1)


def test_nrmse_of_an_empty_image_is_one():
    assert nrmse(torch.zeros(5), torch.ones(5)) == 1


def test_only_the_mask_counts():
    reference, mask = complex_noise(9, 9), torch.zeros(9, 9)
    mask[2:5, 3:6] = 1
    image = torch.where(mask > 0, reference, 100)
    assert nrmse(image, reference, mask) == pytest.approx(0, abs=1e-6)
    assert psnr(image, reference, mask) == math.inf


def test_psnr_by_hand():
    assert psnr(torch.tensor([1.0, 3.9]), torch.tensor([1.0, 4.0])) == pytest.approx(
        20 * math.log10(4 / (0.1 / math.sqrt(2))), rel=1e-4
    )


def test_nmse_by_hand():
    image, reference = torch.tensor([3.0, 3j]), torch.tensor([3j, 4.0])
    assert nmse(image, reference) == pytest.approx(1 / 25)
    assert nmse(image, reference, torch.tensor([True, False])) == 0


def test_coverage_counts_the_pixels_within_the_interval_of_their_magnitude():
    """90 % of a Gaussian lie within 1.6449 of its deviations, that of the magnitude being 1 / sqrt(2)."""
    reference, deviation = torch.full((4,), 5j), math.sqrt(2) * torch.ones(4)
    image = reference * (1 + torch.tensor([1.64, -1.64, 1.65, -1.65]) / 5)
    assert coverage(image, reference, deviation) == 0.5
    assert coverage(image, reference, deviation, level=0.95) == 1
    assert coverage(image, reference, deviation, torch.tensor([True, True, True, False])) == pytest.approx(2 / 3)


@pytest.mark.parametrize(("samples", "covered"), [(2, 0.69), (4, 0.81), (16, 0.88)])
def test_few_exact_samples_cover_less_than_all_would(samples, covered):
    """Of a Gaussian posterior; by Student's law, since neither the mean nor the deviation is exact."""
    truth, *draws = 50 + complex_noise(samples + 1, 100_000, seed=3)
    draws = torch.stack(draws)
    deviation = (draws - draws.mean(0)).abs().square().sum(0).div(samples - 1).sqrt()
    assert coverage(draws.mean(0), truth, deviation) == pytest.approx(covered, abs=0.006)


def test_error_correlation_sees_the_size_of_errors_and_not_their_sign():
    reference, deviation = torch.full((4,), 5.0), torch.tensor([1.0, 2, 3, 4])
    image = reference + torch.tensor([0.1, -0.2, -0.3, 0.4])
    assert error_correlation(image, reference, deviation) == pytest.approx(1, abs=1e-5)
    assert error_correlation(image, reference, deviation.flip(0)) == pytest.approx(-1, abs=1e-5)
    assert math.isnan(error_correlation(image, reference, torch.ones(4)))


def test_ssim_of_the_same_image_is_one_and_of_its_negative_contrast_is_low():
    image = torch.rand(20, 20, generator=torch.Generator().manual_seed(0))
    assert ssim(image * torch.exp(torch.tensor(1j)), image) == pytest.approx(1)
    assert ssim(1 - image, image) < 0


@pytest.mark.parametrize("measure", [nmse, nrmse, psnr, ssim])
def test_refusals(measure):
    with pytest.raises(ValueError, match=r"image \[9, 9\] as the reference, got \[8, 9\]"):
        measure(torch.ones(8, 9), torch.ones(9, 9))
    with pytest.raises(ValueError, match="reference is zero or not finite"):
        measure(torch.ones(9, 9), torch.zeros(9, 9))
    with pytest.raises(ValueError, match="reference is zero or not finite"):
        measure(torch.ones(9, 9), torch.full((9, 9), math.nan))


@pytest.mark.parametrize("measure", [nmse, nrmse, psnr, ssim])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_image_that_is_not_finite_has_no_figure(measure, value):
    image = torch.ones(9, 9)
    image[3, 4:6] = value
    with pytest.raises(ValueError, match="2 of 81 pixels of the image are not finite"):
        measure(image, torch.ones(9, 9))


@pytest.mark.parametrize("measure", [nmse, nrmse, psnr])
def test_masks_that_do_not_fit(measure):
    with pytest.raises(ValueError, match=r"mask \[9, 9\] as the reference, got \[3\]"):
        measure(torch.ones(9, 9), torch.ones(9, 9), torch.ones(3))


@pytest.mark.parametrize(("shape", "window"), [((9,), 7), ((9, 9), 8), ((9, 6), 7), ((9, 9), 1)])
def test_windows_that_do_not_fit(shape, window):
    with pytest.raises(ValueError, match="odd window within it"):
        ssim(torch.ones(shape), torch.ones(shape), window)


@pytest.mark.peers
@pytest.mark.parametrize("shape", [(31, 24), (9, 12, 10)])
def test_scikit_image_measures_the_same(shape):
    measures = pytest.importorskip("skimage.metrics")
    generator = torch.Generator().manual_seed(0)
    reference = torch.rand(shape, generator=generator, dtype=torch.float64)
    image = reference + 0.1 * torch.rand(shape, generator=generator, dtype=torch.float64)
    peak = float(reference.max())
    a, b = reference.numpy(), image.numpy()
    assert nrmse(image, reference, scale=False) == pytest.approx(measures.normalized_root_mse(a, b))
    assert psnr(image, reference) == pytest.approx(measures.peak_signal_noise_ratio(a, b, data_range=peak))
    for window in (5, 7):
        theirs = measures.structural_similarity(a, b, data_range=peak, win_size=window)
        assert ssim(image, reference, window) == pytest.approx(theirs)
