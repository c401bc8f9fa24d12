import math

import pytest
import torch

from recon_core.metrics import nrmse, psnr, ssim

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


def test_ssim_of_the_same_image_is_one_and_of_its_negative_contrast_is_low():
    image = torch.rand(20, 20, generator=torch.Generator().manual_seed(0))
    assert ssim(image * torch.exp(torch.tensor(1j)), image) == pytest.approx(1)
    assert ssim(1 - image, image) < 0


@pytest.mark.parametrize("measure", [nrmse, psnr, ssim])
def test_refusals(measure):
    with pytest.raises(ValueError, match=r"image \[9, 9\] as the reference, got \[8, 9\]"):
        measure(torch.ones(8, 9), torch.ones(9, 9))
    with pytest.raises(ValueError, match="reference is zero or not finite"):
        measure(torch.ones(9, 9), torch.zeros(9, 9))
    with pytest.raises(ValueError, match="reference is zero or not finite"):
        measure(torch.ones(9, 9), torch.full((9, 9), math.nan))


@pytest.mark.parametrize("measure", [nrmse, psnr])
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
