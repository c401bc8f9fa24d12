import re

import pytest
import torch

from recon_core.priors.pogmdm.model import PoGMDM, PoGMDMConfig
from recon_core.priors.pogmdm.published import load_pogmdm


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


def test_the_published_weights_stand_where_they_belong(saved):
    prior = load_pogmdm(saved())
    network = PoGMDM(PoGMDMConfig("published")).eval().requires_grad_(False)
    network.gain.copy_(torch.linspace(0.5, 2, 20))
    image, sigma = torch.randn(1, 20, 24, dtype=torch.complex64), torch.tensor([0.1])
    expected = network(torch.view_as_real(image).movedim(-1, 1), sigma)
    torch.testing.assert_close(torch.view_as_real(prior.denoise(image, 0.1)).movedim(-1, 1), expected)


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
