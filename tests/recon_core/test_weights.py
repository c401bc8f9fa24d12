import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from recon_core.priors.card import Card, Source
from recon_core.priors.pogmdm.model import PoGMDM, PoGMDMConfig
from recon_core.priors.prior import Convention
from recon_core.priors.unet import UNet, UNetConfig
from recon_core.priors.weights import describe, read_prior, save_prior

from analytic import complex_noise

CONVENTION = Convention("percentile99", 0.005, 160.0)
CARD = Card(
    summary="Heads.",
    licence="CC0",
    sources=(Source("Some heads", "CC BY 4.0", "Somebody, 2020"),),
    steps=7,
    metrics={"PSNR": 30.5},
)


def unet(seed=0):
    """Every weight is random, those that begin as zero too."""
    generator = torch.Generator().manual_seed(seed)
    network = UNet(UNetConfig((4, 6), signal=0.4))
    for parameter in network.requires_grad_(False).parameters():
        parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return network


def pogmdm():
    network = PoGMDM(PoGMDMConfig("published")).requires_grad_(False)
    network.gain.copy_(torch.linspace(0.5, 2, len(network.gain)))
    return network


def written(path, network=None, half=False):
    save_prior(path, network or unet(), CONVENTION, CARD, half)
    return path


def rewritten(path, tensors=lambda tensors: None, metadata=lambda metadata: None):
    """A prior's file with changes to its tensors and metadata."""
    written(path)
    found = load_file(path)
    changed = told(path)
    tensors(found)
    metadata(changed)
    save_file(found, path, metadata=changed or None)
    return path


def told(path):
    """The metadata by the format's own definition: a length of eight bytes, then JSON."""
    raw = path.read_bytes()
    return json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]


@pytest.mark.parametrize("network", [unet(), pogmdm()], ids=["unet", "pogmdm"])
def test_a_prior_comes_back_as_it_was(tmp_path, network):
    prior = read_prior(written(tmp_path / "mine.safetensors", network))
    assert (prior.name, prior.convention) == ("mine", CONVENTION)
    image = complex_noise(2, 20, 17)
    sigma = torch.tensor([0.05, 0.3])
    expected = network.eval()(torch.view_as_real(image).movedim(-1, 1), sigma)
    torch.testing.assert_close(prior.denoise(image, sigma), torch.complex(expected[:, 0], expected[:, 1]))
    assert not prior.denoiser.training
    assert not any(parameter.requires_grad for parameter in prior.denoiser.parameters())


def test_files_that_do_not_tell_are_of_images_of_any_phase(tmp_path):
    def untold(metadata):
        convention = json.loads(metadata["convention"])
        del convention["any_phase"]
        metadata["convention"] = json.dumps(convention)

    path = rewritten(tmp_path / "older.safetensors", metadata=untold)
    assert describe(path).convention == replace(CONVENTION, any_phase=True)
    assert not describe(written(path)).convention.any_phase


def test_half_precision_needs_half_the_space_and_rounds_to_a_thousandth(tmp_path):
    whole, half = (written(tmp_path / f"{half}.safetensors", half=half) for half in (False, True))
    sizes = [sum(t.nbytes for t in load_file(path).values()) for path in (whole, half)]
    assert sizes[0] == 2 * sizes[1]
    first, second = (read_prior(path).denoiser.state_dict() for path in (whole, half))
    for name, tensor in first.items():
        assert second[name].dtype == torch.float32
        torch.testing.assert_close(second[name], tensor, rtol=1e-3, atol=1e-7)
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_a_file_tells_what_it_is_before_its_weights_are_read(tmp_path):
    path = rewritten(tmp_path / "mine.safetensors", tensors=lambda tensors: tensors.clear())
    description = describe(path)
    assert (description.kind, description.convention, description.card) == ("unet", CONVENTION, CARD)
    assert UNetConfig(**description.config).signal == 0.4


def test_the_card_stands_beside_the_weights(tmp_path):
    written(tmp_path / "mine.safetensors")
    page = (tmp_path / "mine.md").read_text()
    assert page == CARD.to_markdown("mine")
    assert "Some heads (CC BY 4.0). Somebody, 2020" in page


def test_the_file_opens_with_the_format_own_reader(tmp_path):
    path = written(tmp_path / "mine.safetensors")
    torch.testing.assert_close(load_file(path), dict(unet().state_dict()))
    assert told(path)["format"] == "spinstream prior 1"


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(OSError, match="absent.safetensors"):
        read_prior(tmp_path / "absent.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(OSError, match="folder.safetensors"):
        read_prior(tmp_path / "folder.safetensors")


class Trap:
    def __reduce__(self):
        return print, ("opened",)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: torch.save(Trap(), path),
        lambda path: torch.save(unet().state_dict(), path),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no weights at all, but some text"),
        lambda path: path.write_bytes(written(path).read_bytes()[:-10]),
        lambda path: path.write_bytes((2**40).to_bytes(8, "little") + b"{}"),
    ],
    ids=["pickled code", "pickled weights", "empty", "text", "cut off", "absurd header"],
)
def test_files_of_other_formats_are_refused_unopened(tmp_path, capsys, write):
    path = tmp_path / "mine.safetensors"
    write(path)
    with pytest.raises(
        ValueError, match=r'mine.safetensors is not a prior: expected a safetensors file .*"ncsnv2:.*mine'
    ):
        read_prior(path)
    assert "opened" not in capsys.readouterr().out


def test_other_peoples_safetensors_are_refused(tmp_path):
    path = tmp_path / "mine.safetensors"
    for metadata, got in ((None, "None"), ({"format": "pt"}, "'pt'"), ({"format": "spinstream prior 9"}, "prior 9")):
        save_file({"w": torch.ones(3)}, path, metadata=metadata)
        with pytest.raises(
            ValueError, match=rf'mine.safetensors is not a prior: expected .* "spinstream prior 1", got .*{got}'
        ):
            read_prior(path)


def without(name):
    return lambda metadata: metadata.pop(name)


def having(name, value):
    """`name` with another value; JSON, but for the kind."""
    return lambda metadata: metadata.update({name: value if isinstance(value, str) else json.dumps(value)})


SCALE = {"scale": "percentile99", "lowest": 0.005, "highest": 160.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            without("card"),
            "expected a description with card, config, convention, kind, got config, convention, format, kind",
        ),
        (without("convention"), "expected a description with .*convention.*, got card, config, format, kind"),
        (having("kind", "gan"), "expected a prior of the kinds unet, pogmdm, got 'gan'"),
        (having("kind", "pogmdm"), "configuration does not describe a pogmdm: .*channels"),
        (having("convention", "not JSON"), "description is damaged: Expecting value"),
        (having("convention", [1, 2]), "description is damaged: .*list"),
        (having("convention", {**SCALE, "scale": "mean"}), "damaged: expected the scale .*, got 'mean'"),
        (
            having("convention", {**SCALE, "lowest": 200}),
            "damaged: expected noise levels 0 < lowest < highest, got 200",
        ),
        (having("convention", {**SCALE, "lowest": -1}), "got -1 and 160"),
        (having("convention", {**SCALE, "lowest": float("nan")}), "got nan and 160"),
        (having("convention", {**SCALE, "highest": "a lot"}), "description is damaged: .*'str'"),
        (having("convention", {"scale": "maximum"}), "damaged: .*missing.*'lowest' and 'highest'"),
        (having("convention", {**SCALE, "unit": 1}), "damaged: .*unexpected.*'unit'"),
        (having("card", "not JSON"), "damaged: expected a model card with summary, "),
        (having("card", {"summary": "no sources"}), "damaged: expected a model card with summary, .*'sources'"),
        (having("config", "not JSON"), "description is damaged: Expecting value"),
        (having("config", [4, 6]), "configuration does not describe a unet: .*list"),
        (having("config", {"channels": []}), "does not describe a unet: expected channels, blocks .* above zero"),
        (having("config", {"channels": [4, -6]}), "does not describe a unet: expected channels.*-6"),
        (having("config", {"channels": [4, 10**9]}), "does not describe a unet: .*memory"),
        (having("config", {"channels": [4.5, 6]}), "does not describe a unet: "),
        (having("config", {"channels": "wide"}), "does not describe a unet: .*'str'"),
        (having("config", {"channels": [4, 6], "signal": float("nan")}), "does not describe a unet: .*nan"),
        (having("config", {"channels": [4, 6], "depth": 3}), "does not describe a unet: .*'depth'"),
    ],
)
def test_damaged_descriptions_are_refused(tmp_path, change, message):
    path = rewritten(tmp_path / "mine.safetensors", metadata=change)
    with pytest.raises(ValueError, match=f"mine.safetensors: .*{message}"):
        read_prior(path)


def changed(name, change):
    return lambda tensors: tensors.update({name: change(tensors[name])})


def spoilt(value):
    def spoil(tensor):
        tensor.view(-1)[3] = value
        return tensor

    return spoil


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: tensors.pop("network.last.bias"),
            "expected the 30 tensors of UNet, got 29; 1 missing, such as network.last.bias",
        ),
        (
            lambda tensors: tensors.update(other=torch.ones(1)),
            "expected the 30 tensors of UNet, got 31; 1 unknown, such as other",
        ),
        (lambda tensors: tensors.clear(), "expected a state dict"),
        (
            changed("network.first.weight", lambda w: w[:, :1].clone()),
            r"expected network.first.weight \[4, 2, 3, 3\], got \[4, 1, 3, 3\]",
        ),
        (
            changed("network.last.weight", lambda w: w[:1].clone()),
            r"expected network.last.weight \[2, 4, 3, 3\], got \[1, 4, 3, 3\]",
        ),
        (changed("network.last.weight", spoilt(float("nan"))), "network.last.weight is not finite"),
        (changed("network.first.bias", spoilt(float("inf"))), "network.first.bias is not finite"),
    ],
    ids=["missing", "extra", "none", "one channel in", "one channel out", "nan", "inf"],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, change, message):
    path = rewritten(tmp_path / "mine.safetensors", tensors=change)
    with pytest.raises(ValueError, match=f"mine.safetensors: {message}"):
        read_prior(path)


def test_weights_of_another_size_are_refused(tmp_path):
    path = rewritten(tmp_path / "mine.safetensors", metadata=having("config", {"channels": [4, 8]}))
    with pytest.raises(ValueError, match=r"mine.safetensors: expected network\..* \[.*8.*\], got \[.*6.*\]"):
        read_prior(path)


def test_only_finite_weights_of_known_networks_are_written(tmp_path):
    path = tmp_path / "mine.safetensors"
    broken = unet()
    broken.network.first.bias[0] = float("nan")
    with pytest.raises(ValueError, match="mine.safetensors: network.first.bias is not finite"):
        written(path, broken)
    broken.network.first.bias[0] = 1e5  # finite, but not in half precision
    with pytest.raises(ValueError, match="mine.safetensors: network.first.bias is not finite"):
        written(path, broken, half=True)
    with pytest.raises(ValueError, match="expected a network of the kinds unet, pogmdm, got a Linear"):
        written(path, nn.Linear(2, 2))
    assert not list(tmp_path.iterdir())
