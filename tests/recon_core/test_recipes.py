import pytest
import torch

from recon_core.priors.card import Card
from recon_core.priors.pogmdm.model import PoGMDM, PoGMDMConfig
from recon_core.priors.prior import Convention
from recon_core.priors.unet import UNet, UNetConfig
from recon_core.priors.weights import read_prior, save_prior
from recon_core.training.recipes import pogmdm_recipe, unet_recipe

CONVENTION = Convention("percentile99", 0.01, 160.0)


def stored(path, network, spread=0.0):
    """A prior in a file; its weights are moved away from where they start, so that every block does something."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    save_prior(path, network, CONVENTION, Card("first"))
    return str(path)


@pytest.mark.parametrize("size", ["small", "large"])
def test_a_training_starts_as_the_network_that_it_starts_from(tmp_path, size):
    start = stored(tmp_path / "first.safetensors", unet_recipe("small", 1).network, spread=0.02)
    recipe = unet_recipe(size, 2, start)
    assert recipe.settings.start == start
    network = recipe.network
    image, sigma = torch.randn(2, 2, 33, 40), torch.tensor([0.1, 2.0])
    with torch.no_grad():
        expected = read_prior(tmp_path / "first.safetensors").denoiser(image, sigma)
        torch.testing.assert_close(network(image, sigma), expected)
        fresh = unet_recipe(size, 2).network(image, sigma)
    assert (fresh - expected).norm() > 0.01 * expected.norm()


@pytest.mark.parametrize("recipe", [unet_recipe("small", 1), pogmdm_recipe(1)], ids=["unet", "pogmdm"])
def test_training_turns_images_by_any_phase(recipe):
    assert recipe.convention.any_phase


def test_the_seed_chooses_the_first_weights_and_nothing_else():
    state = torch.get_rng_state()
    first, same, other = (unet_recipe("small", seed).network.state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, same[name]) for name, tensor in first.items())
    assert any(not torch.equal(tensor, other[name]) for name, tensor in first.items())


def test_starts_that_do_not_fit_are_refused(tmp_path):
    large = stored(tmp_path / "large.safetensors", unet_recipe("large", 1).network)
    with pytest.raises(
        ValueError, match=r"cannot start from .*large.safetensors: network.* has no place in a UNetConf"
    ):
        unet_recipe("small", 1, large)
    narrow = stored(tmp_path / "narrow.safetensors", UNet(UNetConfig((4, 8))))
    with pytest.raises(ValueError, match=r"narrow.safetensors: .* has no place"):
        unet_recipe("small", 1, narrow)
    mixture = stored(tmp_path / "mixture.safetensors", PoGMDM(PoGMDMConfig()))
    with pytest.raises(ValueError, match="mixture.safetensors: expected a U-Net, got a PoGMDM"):
        unet_recipe("small", 1, mixture)
    with pytest.raises(ValueError, match="expected the size small or large, got 'huge'"):
        unet_recipe("huge", 1)
