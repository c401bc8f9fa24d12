import hashlib
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, elu, unfold

from recon_core.priors.ncsnv2 import NCSNv2, load_ncsnv2

LEVELS = torch.tensor(np.geomspace(232, 0.0066, 2311), dtype=torch.float32)


def network(features=4, sigmas=LEVELS, dtype=torch.float64):
    """A small network of the published form; every weight is random, so that each of them matters."""
    generator = torch.Generator().manual_seed(features)
    small = NCSNv2(sigmas, features).to(dtype).requires_grad_(False)
    for name, weight in small.named_parameters():
        fan = math.prod(weight.shape[1:])
        weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64) / math.sqrt(fan))
        if name.endswith(("alpha", "gamma")):
            weight.abs_().add_(0.5)
    return small


def image(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


# The published network once more, straight from its state dict and from smaller bricks than the one under test uses.


def published_score(w, x, c):
    """Score of class `c` as the published network gives it."""

    def conv(name, x, dilation=1):
        kernel = w[name + ".weight"]
        return conv2d(x, kernel, w.get(name + ".bias"), padding=dilation * (kernel.shape[-1] // 2), dilation=dilation)

    def norm(name, x):
        alpha, gamma, beta = (w[f"{name}.{part}"].reshape(1, -1, 1, 1) for part in ("alpha", "gamma", "beta"))
        means = x.mean((2, 3), keepdim=True)
        h = (x - means) / (((x - means) ** 2).mean((2, 3), keepdim=True) + 1e-5).sqrt()
        apart = means - means.mean(1, keepdim=True)
        apart = apart / ((apart**2).sum(1, keepdim=True) / (x.shape[1] - 1) + 1e-5).sqrt()
        return gamma * (h + alpha * apart) + beta

    def pooled(x):
        return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4

    def residual(name, x, halve, dilation, shortcut):
        h = conv(name + ".conv1", elu(norm(name + ".normalize1", x)), dilation)
        h = elu(norm(name + ".normalize2", h))
        if halve:
            return pooled(conv(name + ".conv2.conv", h)) + pooled(conv(name + ".shortcut.conv", x))
        h = conv(name + ".conv2", h, dilation)
        return h + (conv(name + ".shortcut", x, dilation) if shortcut else x)

    def stage(name, x, halve=False, dilation=1):
        x = residual(name + ".0", x, halve, dilation, shortcut=dilation > 1)
        return residual(name + ".1", x, False, dilation, shortcut=False)

    def units(name, x, count):
        for k in range(1, count + 1):
            x = x + conv(f"{name}.{k}_2_conv", elu(conv(f"{name}.{k}_1_conv", elu(x))))
        return x

    def stretched(x, size):
        for axis, n in zip((2, 3), size, strict=True):
            at = torch.linspace(0, x.shape[axis] - 1, n, dtype=x.dtype)
            low = at.long().clamp(max=max(x.shape[axis] - 2, 0))
            high = (low + 1).clamp(max=x.shape[axis] - 1)
            part = (at - low).reshape((1, 1, -1, 1) if axis == 2 else (1, 1, 1, -1))
            x = x.index_select(axis, low) * (1 - part) + x.index_select(axis, high) * part
        return x

    def greatest_of_25(x):
        edged = torch.nn.functional.pad(x, (2, 2, 2, 2), value=-1e9)
        return unfold(edged, 5).unflatten(1, (-1, 25)).amax(2).unflatten(-1, x.shape[-2:])

    def refine(name, xs, last=False):
        hs = [units(f"{name}.adapt_convs.{i}", x, 2) for i, x in enumerate(xs)]
        if len(hs) == 2:
            hs = [stretched(conv(f"{name}.msf.convs.{i}", h), xs[0].shape[-2:]) for i, h in enumerate(hs)]
        h = elu(sum(hs))
        once = conv(name + ".crp.convs.0", greatest_of_25(h))
        twice = conv(name + ".crp.convs.1", greatest_of_25(once))
        return units(name + ".output_convs", h + once + twice, 3 if last else 1)

    l1 = stage("res1", conv("begin_conv", 2 * x - 1))
    l2 = stage("res2", l1, halve=True)
    l3 = stage("res3", l2, halve=True)
    l31 = stage("res31", l3, halve=True)
    l4 = stage("res4", l31, dilation=2)
    l5 = stage("res5", l4, dilation=4)
    h = refine("refine2", [l4, refine("refine1", [l5])])
    h = refine("refine3", [l3, refine("refine31", [l31, h])])
    h = refine("refine5", [l1, refine("refine4", [l2, h])], last=True)
    h = conv("end_conv", elu(norm("normalizer", h)))
    return h / w["sigmas"][c].reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("size", [(32, 40), (8, 8)])
def test_the_published_classes_denoise_as_an_independent_evaluation_says(size):
    small, classes = network(), torch.tensor([0, 1155, 2310])
    sigma = small.sigmas[classes]
    noisy = image(3, 2, *size) * (0.3 + sigma[:, None, None, None])
    score = published_score(small.state_dict(), noisy, classes)
    denoised = noisy + sigma[:, None, None, None] ** 2 * score
    torch.testing.assert_close(small(noisy, sigma), denoised, rtol=1e-10, atol=1e-10)


def test_names_and_shapes_are_the_published_ones():
    with torch.device("meta"):
        deepest = NCSNv2(torch.empty(2311), 128)
    shapes = {name: list(tensor.shape) for name, tensor in deepest.state_dict().items()}
    telling = {
        "sigmas": [2311],
        "begin_conv.weight": [128, 2, 3, 3],
        "res2.0.conv2.conv.weight": [256, 128, 3, 3],
        "res31.0.shortcut.conv.weight": [256, 256, 1, 1],
        "res5.0.shortcut.weight": [512, 512, 3, 3],
        "refine31.msf.convs.1.bias": [256],
        "refine1.crp.convs.1.weight": [512, 512, 3, 3],
        "refine5.output_convs.3_2_conv.weight": [128, 128, 3, 3],
        "normalizer.alpha": [128],
    }
    assert telling.items() <= shapes.items()
    assert len(shapes) == 230
    assert sum(weight.numel() for weight in deepest.parameters()) == 94_130_306
    # Of the state dict of NCSNv2Deepest in csgm-mri-langevin's submodule at ef1eae3, with the configuration for MRI.
    listed = "\n".join(sorted(f"{name} {shape}" for name, shape in shapes.items()))
    assert hashlib.sha256(listed.encode()).hexdigest().startswith("683183d4342749dc600096fe7c181e4b")


def test_between_classes_the_noise_stays_that_of_the_network():
    small = network()
    noisy, sigma = image(1, 2, 16, 24), torch.sqrt(small.sigmas[1200:1201] * small.sigmas[1201:1202])
    noise = (noisy - small(noisy, sigma)) / sigma
    for c in (1200, 1201):
        score = published_score(small.state_dict(), noisy, torch.tensor([c]))
        torch.testing.assert_close(noise, -small.sigmas[c] * score, rtol=1e-10, atol=1e-10)


def test_variance_preserving_images_are_asked_at_their_own_level(tmp_path):
    """White Gaussian images have an exact noise prediction; a network finds the level in the image itself."""
    signal = 0.1

    def minus_unit_noise(x):
        variance = (x**2).mean((1, 2, 3), keepdim=True)
        return -torch.sqrt(variance - signal**2) / variance * x

    prior = load(tmp_path, network(1).state_dict())
    prior.denoiser.scaled_score = minus_unit_noise
    retained = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    for t in (100, 200, 411, 700, 999):
        alpha, sigma = math.sqrt(retained[t]), math.sqrt(1 - retained[t])
        noisy = torch.view_as_complex(image(256, 256, 2)) * math.sqrt((alpha * signal) ** 2 + sigma**2)
        expected = sigma / ((alpha * signal) ** 2 + sigma**2) * noisy
        predicted = prior.predicted_noise(noisy, alpha, sigma)
        assert float((predicted - expected).norm() / expected.norm()) < 0.02, t


@pytest.mark.parametrize("size", [(30, 25), (5, 3), (1, 1)])
def test_any_size_is_continued_by_its_mirror_image(size):
    small = network()
    x, sigma = image(1, 2, *size), torch.tensor([0.3], dtype=torch.float64)
    below, right = (-n % 8 for n in size)
    mode = "reflect" if min(size) >= 8 else "edge"
    whole = torch.from_numpy(np.pad(x.numpy(), ((0, 0), (0, 0), (0, below), (0, right)), mode))
    torch.testing.assert_close(small(x, sigma), small(whole, sigma)[..., : size[0], : size[1]])


def test_images_of_a_batch_do_not_see_each_other():
    small = network()
    x, sigma = image(2, 2, 24, 16), torch.tensor([0.1, 3], dtype=torch.float64)
    alone = torch.cat([small(x[:1], sigma[:1]), small(x[1:], sigma[1:])])
    torch.testing.assert_close(small(x, sigma), alone)


def load(folder, checkpoint):
    torch.save(checkpoint, folder / "a.pth")
    return load_ncsnv2(folder / "a.pth")


@pytest.fixture
def weights():
    return network(dtype=torch.float32).state_dict()


def checked(prior, weights):
    x, sigma = image(2, 16, 16).float(), torch.tensor([0.5])
    channels = torch.view_as_complex(x.movedim(0, -1).contiguous())
    score = published_score(weights, x[None], torch.tensor([1350]))[0] * weights["sigmas"][1350]
    expected = torch.view_as_complex((x + sigma * score).movedim(0, -1).contiguous())
    torch.testing.assert_close(prior.denoise(channels, 0.5), expected, rtol=1e-4, atol=1e-4)


def test_a_state_dict_alone_loads(tmp_path, weights):
    prior = load(tmp_path, weights)
    checked(prior, weights)
    assert prior.name == f"ncsnv2:{tmp_path / 'a.pth'}"
    assert prior.convention.scale == "percentile99"
    assert (prior.convention.lowest, prior.convention.highest) == pytest.approx((0.0066, 232))
    assert not any(weight.requires_grad for weight in prior.denoiser.parameters())


def as_trained(small):
    """What training on several devices saved: `DataParallel`'s names, and the optimiser's state."""
    parallel = nn.DataParallel(small.requires_grad_())
    optimiser = torch.optim.Adam(parallel.parameters())
    return [parallel.state_dict(), optimiser.state_dict(), 7, 100_000]


def test_a_training_checkpoint_loads_without_and_with_its_moving_average(tmp_path, weights):
    states = as_trained(network(dtype=torch.float32))
    checked(load(tmp_path, states), weights)
    average = {name: 1.1 * tensor for name, tensor in weights.items() if name != "sigmas"}
    checked(load(tmp_path, [*states, average]), {**average, "sigmas": weights["sigmas"]})


def test_levels_that_the_checkpoint_does_not_know_are_refused(tmp_path, weights):
    prior = load(tmp_path, weights)
    with pytest.raises(ValueError, match=r"a\.pth knows noise levels from 0\.0066 to 232 of a unit image, got 300"):
        prior.denoise(torch.ones(8, 8, dtype=torch.complex64), 300)


def without(weights, part):
    return {name: tensor for name, tensor in weights.items() if part not in name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {"weight": torch.ones(3)}, r"NCSNv2 with begin_conv\.weight, got 1 tensors such as weight"),
        (lambda w: without(w, "sigmas"), r"expected the state dict of NCSNv2 with sigmas, got 229 tensors"),
        (lambda w: without(w, "31"), r"the 230 tensors of NCSNv2, got 192; 38 missing, such as refine31\.adapt"),
        (lambda w: {**w, "extra": torch.ones(1)}, "got 231; 1 unknown, such as extra"),
        (lambda w: {**w, "end_conv.bias": torch.ones(3)}, r"expected end_conv\.bias \[2\], got \[3\]"),
        (lambda w: {**w, "begin_conv.weight": torch.ones(4, 1, 3, 3)}, r"2 channels .* got \[4, 1, 3, 3\]"),
        (lambda w: {**w, "begin_conv.weight": torch.ones(4, 3, 3, 3)}, r"2 channels .* got \[4, 3, 3, 3\]"),
        (lambda w: {**w, "sigmas": torch.ones(1)}, r"sigmas to be two noise levels or more, got \[1\]"),
        (lambda w: {**w, "sigmas": torch.ones(4, 2)}, r"sigmas to be two noise levels or more, got \[4, 2\]"),
        (lambda w: {**w, "sigmas": LEVELS.flip(0)}, r"positive and to fall, got 2311 from 0\.0066 to 232"),
        (lambda w: {**w, "sigmas": torch.tensor([1.0, 0.0])}, "positive and to fall, got 2 from 1 to 0"),
        (lambda w: {**w, "end_conv.bias": torch.tensor([1, torch.inf])}, r"end_conv\.bias is not finite"),
        (lambda w: {"model_state": w}, "expected a state dict .* got 'model_state': OrderedDict"),
        (lambda w: 3, "expected a state dict .* got int"),
        (lambda w: [w, {}, 3], r"expected \[model, optimiser, epoch, step, moving average\], got a list of 3"),
        (lambda w: [3, {}, 3, 3], r", model: expected a state dict .* got int"),
        (
            lambda w: [w, {}, 3, 3, without(w, "begin_conv.bias")],
            r"average: expected the names .* begin_conv\.bias differs",
        ),
    ],
)
def test_other_checkpoints_are_refused(tmp_path, weights, change, message):
    with pytest.raises(ValueError, match=rf"a\.pth.*{message}"):
        load(tmp_path, change(weights))
