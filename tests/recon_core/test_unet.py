"""The network's random weights are scaled so that every layer matters to the result."""

import math

import numpy as np
import pytest
import torch

from recon_core.priors.precision import bfloat16_pays
from recon_core.priors.unet import UNet, UNetConfig

SMALL = UNetConfig((4, 6, 8, 8))


def normal(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def network(config=SMALL, dtype=torch.float64):
    """Every weight is random, as after training; those that begin as zero too."""
    unet = UNet(config).to(dtype).requires_grad_(False)
    for seed, parameter in enumerate(unet.parameters()):
        parameter.copy_(normal(*parameter.shape, seed=seed) / math.sqrt(parameter[0].numel()))
    return unet


def reach(config):
    """How many pixels further than itself an output pixel sees, at most."""
    pixels = 2  # first and last convolution
    for level in range(len(config.channels)):
        passes = 1 if level == len(config.channels) - 1 else 2  # down and up
        pixels += passes * 2 * config.blocks * 2**level
    return pixels + 2 ** (len(config.channels) - 1) - 1  # where in its coarse pixel it lies


def sigmas(*levels, dtype=torch.float64):
    return torch.tensor(levels, dtype=dtype)


def single_precision(monkeypatch):
    monkeypatch.setattr("recon_core.priors.unet.bfloat16_pays", lambda device, dtype: False)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("size", [(32, 40), (33, 27)])
def test_images_do_not_see_their_batch(monkeypatch, size, dtype, tolerance):
    """But for rounding: a convolution of another batch may sum in another order."""
    single_precision(monkeypatch)
    unet, images, levels = network(dtype=dtype), normal(3, 2, *size, dtype=dtype), sigmas(0.02, 0.2, 5, dtype=dtype)
    together = unet(images, levels)
    for k in range(3):
        torch.testing.assert_close(
            together[k : k + 1], unet(images[k : k + 1], levels[k : k + 1]), rtol=0, atol=tolerance
        )


@pytest.mark.parametrize("size", [(8, 8), (45, 51), (40, 51), (9, 64), (15, 17)])
def test_other_sizes_are_mirrored_to_multiples_of_eight(size):
    unet, image, level = network(), normal(1, 2, *size), sigmas(0.3)
    padded = np.pad(image.numpy(), [(0, 0), (0, 0), (0, -size[0] % 8), (0, -size[1] % 8)], mode="reflect")
    expected = unet(torch.from_numpy(padded), level)[..., : size[0], : size[1]]
    torch.testing.assert_close(unet(image, level), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (30, 1), (5, 9), (7, 7)])
def test_tiny_images_go_on_as_their_edge(size):
    unet, image, level = network(), normal(1, 2, *size), sigmas(0.3)
    padded = np.pad(image.numpy(), [(0, 0), (0, 0), (0, -size[0] % 8), (0, -size[1] % 8)], mode="edge")
    expected = unet(torch.from_numpy(padded), level)[..., : size[0], : size[1]]
    torch.testing.assert_close(unet(image, level), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("config", [SMALL, UNetConfig((4, 6), blocks=2)])
def test_a_pixel_sees_no_further_than_its_reach(config):
    far = reach(config)
    size = 2 * far + 17
    image = normal(1, 2, size, size).requires_grad_()
    middle = size // 2
    network(config)(image, sigmas(0.3))[0, 0, middle, middle].backward()
    seen = image.grad.abs().sum((0, 1)).nonzero()
    assert (seen - middle).abs().max() <= far
    # It is a reach, not merely a bound: nearly all of it is used.
    assert (seen - middle).abs().max() >= 0.8 * far


@pytest.mark.parametrize("margin_top", [1, 3])
def test_a_crop_gives_what_the_whole_image_gives(margin_top):
    """Beyond the reach, and cut where the coarse pixels begin."""
    unet, level = network(), sigmas(0.3)
    image, far = normal(1, 2, 248, 232), reach(SMALL)
    top, left = 8 * margin_top, 8
    whole = unet(image, level)[..., top + far : 200 - far, left + far : 224 - far]
    crop = unet(image[..., top:200, left:224], level)[..., far:-far, far:-far]
    assert whole.numel() > 2 * 40 * 40
    torch.testing.assert_close(crop, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("level", [0.005, 0.3, 160.0])
def test_an_untrained_network_is_the_wiener_filter_of_white_images(level):
    """But for one number per channel, the bias of the last convolution, in units of the best remaining error."""
    signal = 0.35
    unet = UNet(SMALL).double()
    image = math.hypot(level, signal) * normal(2, 2, 16, 24)
    change = unet(image, sigmas(level, level)) - image * signal**2 / (signal**2 + level**2)
    bias = change / (level * signal / math.hypot(level, signal))
    torch.testing.assert_close(bias, bias[:1, :, :1, :1].expand_as(bias), rtol=0, atol=1e-10)
    assert bias.abs().max() < 0.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("level", [0.005, 160.0])
def test_extreme_levels_ask_the_network_for_no_more_than_others(dtype, level):
    """At little noise it returns the image, at much noise an image as large as images are, up to what it adds."""
    image = 0.35 * normal(1, 2, 24, 24) + level * normal(1, 2, 24, 24, seed=1)
    denoised = network(dtype=dtype)(image.to(dtype), sigmas(level, dtype=dtype)).double()
    assert torch.isfinite(denoised).all()
    size = (denoised - image if level < 0.35 else denoised).square().mean().sqrt()
    assert size < 10 * min(level, 0.35)


def test_the_weight_asks_equally_much_at_every_level():
    """The weighted error is that of the network's own output: what the preconditioning multiplies, squared."""
    unet, levels = network(), sigmas(0.01, 0.35, 20.0)
    image = normal(3, 2, 16, 16)
    before = unet(image, levels)
    with torch.no_grad():
        unet.network.last.bias += 1.0
    change = unet(image, levels) - before
    torch.testing.assert_close(unet.weight(levels) * change.square().mean((1, 2, 3)), torch.ones(3).double())


def test_the_noise_level_matters_to_the_network():
    unet, image = network(), normal(1, 2, 16, 16)

    def residual(level):
        total = math.hypot(level, 0.35)
        denoised = unet(total * image, sigmas(level))
        return (denoised - total * image * (0.35 / total) ** 2) * total / (level * 0.35)

    assert (residual(0.1) - residual(0.11)).abs().max() > 1e-3


def test_gradients_reach_the_image_and_every_weight():
    unet = network().requires_grad_(True)
    image = normal(2, 2, 17, 16).requires_grad_()
    unet(image, sigmas(0.1, 1)).square().sum().backward()
    assert image.grad.abs().min() > 0
    for name, parameter in unet.named_parameters():
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("level", [0.01, 1.0])
def test_the_derivative_is_that_of_differences(level):
    unet, image, along = network(), normal(1, 2, 11, 16), normal(1, 2, 11, 16, seed=1)
    _, derivative = torch.func.jvp(lambda x: unet(x, sigmas(level)), (image,), (along,))
    step = 1e-6
    difference = (unet(image + step * along, sigmas(level)) - unet(image - step * along, sigmas(level))) / (2 * step)
    # A rectifier has a kink; where a step crosses one, which is rare, the difference lies between both sides.
    off = (derivative - difference).abs() > 1e-5 * difference.abs().max()
    assert off.float().mean() < 0.01


@pytest.mark.parametrize("size", [(40, 48), (33, 27)])
def test_bfloat16_is_as_exact_as_its_numbers(monkeypatch, size):
    monkeypatch.setattr("recon_core.priors.unet.bfloat16_pays", lambda device, dtype: dtype != torch.float64)
    levels = sigmas(0.05, 1.0)
    total = (levels**2 + 0.35**2).sqrt()[:, None, None, None]
    image = total * normal(2, 2, *size)
    exact = network()(image, levels)
    rounded = network(dtype=torch.float32)(image.float(), levels.float())
    assert rounded.dtype == torch.float32
    added = exact - image * (0.35 / total) ** 2
    error = (rounded - exact).square().sum((1, 2, 3)).sqrt() / added.square().sum((1, 2, 3)).sqrt()
    assert error.min() > 1e-4  # or nothing was rounded
    assert error.max() < 0.02


def test_the_state_dict_is_that_of_the_shipped_weights():
    """What files hold must not change its name or shape."""
    blocks = {"inner.weight": "cc33", "inner.bias": "c", "outer.weight": "cc33", "outer.bias": "c"}
    expected = {
        "network.noise.dense.0.weight": (6, 32),
        "network.noise.dense.0.bias": (6,),
        "network.noise.dense.2.weight": (6, 6),
        "network.noise.dense.2.bias": (6,),
        "network.first.weight": (4, 2, 3, 3),
        "network.first.bias": (4,),
        "network.coarser.0.weight": (6, 4, 2, 2),
        "network.coarser.0.bias": (6,),
        "network.finer.0.weight": (6, 4, 2, 2),
        "network.finer.0.bias": (4,),
        "network.last.weight": (2, 4, 3, 3),
        "network.last.bias": (2,),
    }
    for level, c in (("down.0", 4), ("down.1", 6), ("up.0", 4)):
        for name, axes in blocks.items():
            expected[f"network.{level}.0.{name}"] = tuple(c if axis == "c" else 3 for axis in axes)
        expected[f"network.{level}.0.film.weight"] = (2 * c, 6)
        expected[f"network.{level}.0.film.bias"] = (2 * c,)
    found = {name: tuple(tensor.shape) for name, tensor in UNet(UNetConfig((4, 6))).state_dict().items()}
    assert found == expected


def test_weights_make_the_network_what_it_was():
    first, second = network(), UNet(SMALL).double()
    second.load_state_dict(first.state_dict())
    image = normal(1, 2, 16, 16)
    assert torch.equal(first(image, sigmas(0.1)), second(image, sigmas(0.1)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"channels": ()},
        {"channels": (4, 0)},
        {"blocks": 0},
        {"signal": 0.0},
        {"signal": math.nan},
        {"signal": math.inf},
    ],
)
def test_configurations_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match="channels, blocks and a signal above zero"):
        UNetConfig(**wrong)


@pytest.mark.parametrize(("capability", "pays"), [((7, 0), False), ((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_bfloat16_pays_on_gpus_that_do_not_emulate_it(monkeypatch, capability, pays):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert bfloat16_pays(torch.device("cuda"), torch.float32) == pays
    assert not bfloat16_pays(torch.device("cuda"), torch.float64)
