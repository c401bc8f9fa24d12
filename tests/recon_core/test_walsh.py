import pytest
import torch

from recon_core.calibration.walsh import walsh

from analytic import complex_noise, positions, relative, ring_of_coils, smooth_head

N, COILS = 40, 5


@pytest.fixture(scope="module", name="images")
def _images():
    return (ring_of_coils(N, COILS) * smooth_head(N)).to(torch.complex64)


def agreement(maps, truth):
    return (maps.conj() * truth.to(maps)).sum(0).abs()


def test_maps_are_the_coils_where_there_is_signal(images):
    noisy = images + 0.01 * complex_noise(*images.shape)
    signal = smooth_head(N).abs() > 0.1
    assert agreement(walsh(noisy), ring_of_coils(N, COILS))[signal].min() > 0.995


def test_unit_length_everywhere(images):
    length = walsh(images).abs().square().sum(0).sqrt()
    torch.testing.assert_close(length, torch.ones(N, N))


def test_each_pixel_is_the_dominant_eigenvector_of_its_window():
    images = complex_noise(3, 7, 6)
    maps = walsh(images, window=3)
    for y, x in ((0, 0), (3, 2), (6, 5), (1, 5)):
        window = images[:, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].flatten(1)
        _, vectors = torch.linalg.eigh(window @ window.mH)
        assert (vectors[:, -1].conj() * maps[:, y, x]).sum().abs() == pytest.approx(1, abs=1e-5)


def test_a_window_of_one_pixel_gives_the_images_themselves(images):
    own = images / images.abs().square().sum(0).sqrt()
    assert agreement(walsh(images, window=1), own).min() > 0.9999


def test_phase_is_smooth(images):
    maps = walsh(images)
    signal = smooth_head(N).abs() > 0.1
    pairs = signal[1:] & signal[:-1]
    steps = (maps[:, 1:] * maps[:, :-1].conj()).sum(0)[pairs]
    assert steps.real.min() > 0.98


def test_no_signal_at_all_gives_zero_there(images):
    images = images.clone()
    images[:, :10] = 0
    maps = walsh(images, window=5)
    assert maps[:, :8].abs().max() == 0
    assert maps[:, 8:].abs().square().sum(0).min() > 0.999


def test_three_dimensions():
    z, y, x = torch.meshgrid(positions(8), positions(9), positions(10), indexing="ij")
    coils = torch.stack([1 + z, 1j * (1 - y), 1 + 0.7j * x])
    coils = coils / coils.abs().square().sum(0).sqrt()
    images = coils * torch.exp(-10 * (z**2 + y**2 + x**2))
    maps = walsh(images.to(torch.complex64), window=3)
    assert agreement(maps, coils)[1:-1, 1:-1, 1:-1].min() > 0.995


def test_result_does_not_depend_on_the_chunks(images, monkeypatch):
    whole = walsh(images)
    monkeypatch.setattr("recon_core.calibration.walsh.CHUNK", COILS**2 * N * 7)
    assert relative(walsh(images) - whole, whole) < 1e-4


@pytest.mark.parametrize("window", [0, 4, -3])
def test_windows_that_have_no_middle(window):
    with pytest.raises(ValueError, match=f"odd window of at least one pixel, got {window}"):
        walsh(complex_noise(2, 8, 8), window)


def test_images_without_signal():
    with pytest.raises(ValueError, match="zero or not finite"):
        walsh(torch.zeros(2, 8, 8, dtype=torch.complex64))
