import pytest
import torch

from recon_core.priors import library
from recon_core.priors.card import Card
from recon_core.priors.library import load_prior, shipped_priors
from recon_core.priors.ncsnv2 import NCSNv2
from recon_core.priors.pogmdm.model import PoGMDM, PoGMDMConfig
from recon_core.priors.prior import Convention
from recon_core.priors.unet import UNet, UNetConfig
from recon_core.priors.weights import describe, save_prior

from analytic import complex_noise

CONVENTION = Convention("percentile99", 0.005, 160.0)


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A package with two priors in it."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    for name, signal in (("other", 0.3), ("head", 0.4)):
        save_prior(folder / f"{name}.safetensors", UNet(UNetConfig((4,), signal=signal)), CONVENTION, Card(name))
    monkeypatch.setattr(library, "SHIPPED", folder)
    return folder


def test_priors_that_come_along_are_found_by_name(shipped):
    assert shipped_priors() == {"head": shipped / "head.safetensors", "other": shipped / "other.safetensors"}
    prior = load_prior("head")
    assert (prior.name, prior.convention) == ("head", CONVENTION)
    assert prior.denoiser.config.signal == 0.4


def test_a_users_own_is_found_by_its_path(shipped, tmp_path):
    path = tmp_path / "mine.safetensors"
    save_prior(path, UNet(UNetConfig((4,), signal=0.7)), CONVENTION, Card("mine"))
    prior = load_prior(str(path))
    assert (prior.name, prior.denoiser.config.signal) == ("mine", 0.7)
    with pytest.raises(OSError, match="absent.safetensors"):
        load_prior(str(tmp_path / "absent.safetensors"))


@pytest.mark.parametrize("name", ["heads", "", "head.pt", "gan:/path/file.pth", "head:", "./head"])
def test_other_names_are_refused_with_what_there_is(shipped, name):
    with pytest.raises(
        ValueError,
        match=rf"no prior is called '{name}'; there are head, other, or give a .safetensors file, "
        "or ncsnv2:FILE or pogmdm:FILE",
    ):
        load_prior(name)


def test_a_checkpoint_without_its_kind_is_shown_with_each():
    with pytest.raises(ValueError, match="or ncsnv2:my/head.pth or pogmdm:my/head.pth for a published checkpoint"):
        load_prior("my/head.pth")


def test_an_empty_package_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(library, "SHIPPED", tmp_path / "nothing")
    assert shipped_priors() == {}
    with pytest.raises(ValueError, match="there are none, or give"):
        load_prior("head")


def published_ncsnv2():
    return NCSNv2(torch.logspace(2, -2, 20), 4).state_dict()


def published_pogmdm():
    model = PoGMDM(PoGMDMConfig("published")).requires_grad_(False)
    return {
        "w.w": torch.cat([model.weights, model.weights[:1]]),
        "lamda": torch.cat([model.gain, torch.zeros(1)]),
        "h": model.low_pass,
        "P": model.fan,
        "mus": torch.linspace(-0.5, 0.5, 125),
        "sigma_0": torch.full((21,), 1 / 124),
    }


@pytest.mark.parametrize(("kind", "weights"), [("ncsnv2", published_ncsnv2), ("pogmdm", published_pogmdm)])
def test_published_checkpoints_are_found_by_kind_and_path(tmp_path, kind, weights):
    path = tmp_path / "a:b.pth"
    torch.save(weights(), path)
    prior = load_prior(f"{kind}:{path}")
    assert prior.name == f"{kind}:{path}"
    assert torch.isfinite(prior.denoise(complex_noise(96, 100), 0.1)).all()


def test_loading_draws_no_random_numbers_and_puts_the_weights_on_the_device(tmp_path, shipped):
    names = ["head"]
    for kind, weights in (("ncsnv2", published_ncsnv2), ("pogmdm", published_pogmdm)):
        torch.save(weights(), tmp_path / f"{kind}.pth")
        names.append(f"{kind}:{tmp_path}/{kind}.pth")
    before = torch.get_rng_state()
    for name in names:
        weights = load_prior(name, "meta").denoiser.parameters()
        assert {weight.device.type for weight in weights} == {"meta"}
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["ncsnv2", "pogmdm"])
def test_published_checkpoints_that_are_none_are_named(tmp_path, shipped, kind):
    with pytest.raises(OSError, match="absent.pth"):
        load_prior(f"{kind}:{tmp_path}/absent.pth")
    with pytest.raises(ValueError, match="head.safetensors is not a checkpoint"):
        load_prior(f"{kind}:{shipped}/head.safetensors")

    class Trap:
        def __reduce__(self):
            return (tmp_path / "opened").touch, ()

    torch.save(Trap(), tmp_path / "trap.pth")
    with pytest.raises(ValueError, match="trap.pth"):
        load_prior(f"{kind}:{tmp_path}/trap.pth")
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize("name", shipped_priors())
def test_what_is_shipped_is_whole(name):
    """Sixteen megabytes in all, each with its card, and a denoiser."""
    paths = shipped_priors()
    assert sum(path.stat().st_size for path in paths.values()) <= 16e6
    card = describe(paths[name]).card
    assert card.sources
    assert card.metrics
    assert paths[name].with_suffix(".md").read_text() == card.to_markdown(name)
    prior = load_prior(name)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 96), torch.linspace(-1, 1, 80), indexing="ij")
    clean = (torch.hypot(y, x) < 0.7).to(torch.complex64)
    noise = 0.1 * torch.view_as_complex(torch.randn(96, 80, 2, generator=torch.Generator().manual_seed(0)))
    error = prior.denoise(clean + noise, 0.1) - clean
    assert error.abs().square().mean() < 0.5 * noise.abs().square().mean()
