import re

import pytest
import torch

from recon_core.priors.pogmdm.model import PoGMDM, PoGMDMConfig
from recon_core.priors.pogmdm.published import load_pogmdm
from recon_core.priors.pogmdm.shearlets import Frequencies, fan_filter, flat_low_pass, spectra

from analytic import complex_noise


def _published(**changes):
    """A state dict as it was published, of the model's first weights; `None` leaves a tensor out."""
    first = PoGMDM(PoGMDMConfig("published")).requires_grad_(False)
    tensors = {
        "lamda": torch.cat([torch.linspace(0.5, 2, 20), torch.zeros(1)]),
        "h": first.low_pass,
        "P": first.fan,
        "w.w": torch.cat([first.weights, first.weights[:1]]),
        "mus": torch.linspace(-0.5, 0.5, 125),
        "sigma_0": torch.full((21,), 1 / 124),
    }
    return {name: tensor for name, tensor in (tensors | changes).items() if tensor is not None}


@pytest.fixture
def saved(tmp_path):
    def save(**changes):
        torch.save(_published(**changes), tmp_path / "state_final.pth")
        return tmp_path / "state_final.pth"

    return save


def test_each_row_is_the_expert_of_its_shearlet(saved):
    """Rows with a quarter of their mass in the centre and the rest at a mean of their own, on both sides."""
    columns, gain, sigma = torch.arange(3, 43, 2), torch.linspace(0.5, 2, 20), 0.3
    rows = torch.zeros(21, 63)
    rows[:20, 0], rows[torch.arange(20), columns] = 0.25, 0.375
    rows[20, 62] = 0.5  # the low-pass filter's, which counts for nothing
    prior = load_pogmdm(saved(**{"w.w": rows, "lamda": torch.cat([gain, torch.zeros(1)])}))

    image = 0.1 * complex_noise(96, 100, dtype=torch.complex128)
    blocks = flat_low_pass().float().double(), fan_filter().float().double()
    filters = gain[:, None, None] * spectra(*blocks, Frequencies.of((96, 100), blocks[0]))
    speed = spectra(*blocks, Frequencies.of((128, 128), blocks[0])).abs().amax((1, 2))
    mean, variance = (columns / 124)[:, None, None].double(), (1 / 124**2 + sigma**2 * speed**2)[:, None, None]
    denoised = prior.denoise(image, sigma)
    for found, channel in ((denoised.real, image.real), (denoised.imag, image.imag)):
        response = torch.fft.irfft2(filters.conj() * torch.fft.rfft2(channel), s=image.shape)
        side = response * mean / variance
        centre = 0.25 * torch.exp(mean**2 / (2 * variance))
        expected = mean * 0.75 * side.sinh() / (0.75 * side.cosh() + centre)
        pull = torch.fft.irfft2((filters * torch.fft.rfft2((response - expected) / variance)).sum(0), s=image.shape)
        torch.testing.assert_close(found, channel - sigma**2 * pull, rtol=0, atol=1e-4)


def test_published_weights_say_how_far_they_reach(saved):
    prior = load_pogmdm(saved())
    assert prior.convention.scale == "maximum"
    with pytest.raises(ValueError, match="state_final.pth knows noise levels from 0.005 to 0.4"):
        prior.denoise(torch.ones(20, 20, dtype=torch.complex64), 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"P": None}, "expected a PoGMDM state dict with w.w, lamda, h, P, mus, sigma_0, got lamda, h, w.w, mus"),
        ({"conv": torch.zeros(3)}, "got lamda, h, P, w.w, mus, sigma_0, conv"),
        ({"w.w": torch.ones(48, 63)}, "expected w.w [21, 63], got [48, 63]"),
        ({"h": torch.ones(8)}, "expected h [9], got [8]"),
        ({"mus": torch.linspace(-1, 1, 125)}, "mus differs: expected 125 means from -0.5 to 0.5"),
        ({"sigma_0": torch.full((21,), 0.1)}, "sigma_0 differs"),
        ({"lamda": torch.ones(21)}, "lamda differs"),
        ({"h": torch.full((9,), torch.nan)}, "h is not finite"),
    ],
)
def test_other_weights_are_refused(saved, changes, message):
    with pytest.raises(ValueError, match=f"state_final.pth: .*{re.escape(message)}"):
        load_pogmdm(saved(**changes))


def test_a_checkpoint_that_holds_objects_is_refused(tmp_path):
    torch.save(PoGMDM(PoGMDMConfig()), tmp_path / "model.pth")
    with pytest.raises(ValueError, match="was not loaded"):
        load_pogmdm(tmp_path / "model.pth")
