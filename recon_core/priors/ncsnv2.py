"""NCSNv2 in its deepest form, whose published checkpoints of MR images (csgm-mri-langevin, SMRD) load as they are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, elu, interpolate, max_pool2d

from recon_core.priors.checkpoint import as_tensors, load_tensors, read_checkpoint
from recon_core.priors.padding import mirrored
from recon_core.priors.prior import Convention, Prior

# Pixels of the image, along each side, per pixel of the coarsest features.
_COARSEST = 8


def load_ncsnv2(path: str | Path, device: torch.device | str = "cpu") -> Prior:
    """The prior in a published checkpoint; the images that it learnt from have a 99th percentile of one.

    Training saved the list `[model, optimiser, epoch, step, moving average]`; the moving average of the weights is
    taken where there is one, as in the papers. A state dict alone is read too.

    Args:
        path: of the checkpoint.
        device: to compute on.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no checkpoint, holds code, or holds other weights than those of this network.
    """
    weights = _weights(read_checkpoint(path), str(path))
    first, sigmas = _first_layer(weights, str(path)), _levels(weights, str(path))
    with torch.random.fork_rng(devices=[]):
        network = NCSNv2(sigmas, features=first.shape[0])
    load_tensors(network, weights, str(path))
    network.to(device).eval().requires_grad_(False)
    convention = Convention("percentile99", lowest=float(sigmas[-1]), highest=float(sigmas[0]))
    return Prior(network, convention, f"ncsnv2:{path}")


class NCSNv2(nn.Module):
    """Denoiser made of the score network of Song and Ermon (Improved techniques, NeurIPS 2020), deepest variant.

    The published network has noise classes `c` and gives the score `h(2 x - 1) / sigma_c`, where `h` is not told the
    class: trained by denoising score matching, it finds minus the unit noise in an image whatever its level. At one
    of the levels, the denoised image `x + sigma^2 score` is thus `x + sigma h`. That holds between the levels as well,
    where the score of the nearest class would be off by up to half a step (0.2 % for the published 2311 classes).

    Features are normalised over the whole image, so what becomes of a pixel depends on all others. Images whose sides
    are no multiples of 8 are continued by their mirror image. That changes the output elsewhere by 1 to 4 % (random
    weights, a head cut by 1 to 7 pixels); zeros change it by 1 to 25 %, and halving odd sides by 10 to 23 %.

    It computes in the precision of its weights: in bfloat16, numbers near one are 0.004 to 0.008 apart, which is about
    the lowest noise level.

    Args:
        sigmas: noise levels of the classes `[classes]`, falling; only kept with the weights, for their range.
        features: channels at full resolution (128 in the published networks).
    """

    def __init__(self, sigmas: Tensor, features: int) -> None:
        super().__init__()
        self.sigmas: Tensor
        self.register_buffer("sigmas", sigmas.clone())
        # The names of all layers are those of the published state dicts.
        fine, middle, coarse = features, 2 * features, 4 * features
        self.begin_conv = _conv(2, fine)
        self.res1 = _stage(fine, fine)
        self.res2 = _stage(fine, middle, halve=True)
        self.res3 = _stage(middle, middle, halve=True)
        self.res31 = _stage(middle, middle, halve=True)
        self.res4 = _stage(middle, coarse, dilation=2)
        self.res5 = _stage(coarse, coarse, dilation=4)
        self.refine1 = _Refine([coarse], coarse)
        self.refine2 = _Refine([coarse, coarse], middle)
        self.refine31 = _Refine([middle, middle], middle)
        self.refine3 = _Refine([middle, middle], middle)
        self.refine4 = _Refine([middle, middle], fine)
        self.refine5 = _Refine([fine, fine], fine, last=True)
        self.normalizer = _Normalisation(fine)
        self.end_conv = _conv(fine, 2)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, image: Tensor, sigma: Tensor) -> Tensor:
        """Mean of the clean images given the noisy ones.

        Args:
            image: `[n, 2, y, x]`, real and imaginary part.
            sigma: noise level of each, `[n]`.
        """
        height, width = image.shape[-2:]
        score = self.scaled_score(mirrored(image, _COARSEST))[..., :height, :width]
        return image + sigma[:, None, None, None] * score

    def scaled_score(self, image: Tensor) -> Tensor:
        """The score times the noise level, `[n, 2, y, x]`, of images whose sides are multiples of 8."""
        image = image.contiguous(memory_format=torch.channels_last)
        full: Tensor = self.res1(self.begin_conv(2 * image - 1))
        half = self.res2(full)
        quarter = self.res3(half)
        eighth = self.res31(quarter)
        wide = self.res4(eighth)
        widest = self.res5(wide)

        x = self.refine1([widest])
        x = self.refine2([wide, x])
        x = self.refine31([eighth, x])
        x = self.refine3([quarter, x])
        x = self.refine4([half, x])
        x = self.refine5([full, x])
        score: Tensor = self.end_conv(elu(self.normalizer(x)))
        return score


class _Normalisation(nn.Module):
    """Instance normalisation that gives back how the mean of each feature differs from the other features' means."""

    def __init__(self, features: int, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(features))
        self.gamma = nn.Parameter(torch.ones(features))
        self.beta = nn.Parameter(torch.zeros(features))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=(2, 3), correction=0, keepdim=True)
        spread, centre = torch.var_mean(mean, dim=1, keepdim=True)
        contrast = (mean - centre) * torch.rsqrt(spread + self.epsilon)
        alpha, gamma, beta = (weights[:, None, None] for weights in (self.alpha, self.gamma, self.beta))
        return gamma * ((x - mean) * torch.rsqrt(variance + self.epsilon) + alpha * contrast) + beta


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, halve: bool, dilation: int) -> None:
        super().__init__()
        self.normalize1 = _Normalisation(inputs)
        self.conv1 = _conv(inputs, inputs, dilation=dilation)
        self.normalize2 = _Normalisation(inputs)
        self.conv2 = _Halving(inputs, outputs, 3) if halve else _conv(inputs, outputs, dilation=dilation)
        self.shortcut: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1(elu(self.normalize1(x)))
        outer: Tensor = self.shortcut(x) + self.conv2(elu(self.normalize2(inner)))
        return outer


class _Halving(nn.Module):
    """A convolution, then the mean of each two by two pixels."""

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, padding=size // 2)

    def forward(self, x: Tensor) -> Tensor:
        return avg_pool2d(self.conv(x), 2)


class _Refine(nn.Module):
    """Joins features of two resolutions, the finer first (after Lin et al., RefineNet, CVPR 2017)."""

    def __init__(self, inputs: Sequence[int], outputs: int, last: bool = False) -> None:
        super().__init__()
        self.adapt_convs = nn.ModuleList(_ResidualUnits(features, 2) for features in inputs)
        if len(inputs) > 1:
            self.msf = _Fusion(inputs, outputs)
        self.crp = _ChainedPooling(outputs)
        self.output_convs = _ResidualUnits(outputs, 3 if last else 1)

    def forward(self, xs: Sequence[Tensor]) -> Tensor:
        adapted = [units(x) for units, x in zip(self.adapt_convs, xs, strict=True)]
        joined = self.msf(adapted) if len(adapted) > 1 else adapted[0]
        refined: Tensor = self.output_convs(self.crp(joined))
        return refined


class _ResidualUnits(nn.Module):
    def __init__(self, features: int, units: int) -> None:
        super().__init__()
        self.units = range(1, units + 1)
        for unit in self.units:
            for stage in (1, 2):
                self.add_module(f"{unit}_{stage}_conv", _conv(features, features, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        for unit in self.units:
            inner = self.get_submodule(f"{unit}_1_conv")(elu(x))
            x = x + self.get_submodule(f"{unit}_2_conv")(elu(inner))
        return x


class _Fusion(nn.Module):
    """Sum of features at the resolution of the first."""

    def __init__(self, inputs: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_conv(features, outputs) for features in inputs)

    def forward(self, xs: Sequence[Tensor]) -> Tensor:
        size = xs[0].shape[-2:]
        convolved = [conv(x) for conv, x in zip(self.convs, xs, strict=True)]
        return sum(
            (interpolate(x, size=size, mode="bilinear", align_corners=True) for x in convolved[1:]), start=convolved[0]
        )


class _ChainedPooling(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_conv(features, features, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = elu(x)
        pooled = x
        for conv in self.convs:
            pooled = conv(max_pool2d(pooled, 5, stride=1, padding=2))
            x = x + pooled
        return x


def _stage(inputs: int, outputs: int, halve: bool = False, dilation: int = 1) -> nn.Sequential:
    """Two residual blocks; the first of them halves the resolution or widens the view."""
    first = _Residual(inputs, outputs, halve, dilation)
    if halve:
        first.shortcut = _Halving(inputs, outputs, 1)
    elif dilation > 1:
        first.shortcut = _conv(inputs, outputs, dilation=dilation)
    return nn.Sequential(first, _Residual(outputs, outputs, False, dilation))


def _conv(inputs: int, outputs: int, dilation: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=bias)


def _weights(loaded: object, path: str) -> dict[str, Tensor]:
    """The state dict in a checkpoint, with the moving average of the weights in place of the last ones."""
    if not isinstance(loaded, list):
        return as_tensors(loaded, path)
    if len(loaded) not in (4, 5):
        raise ValueError(
            f"{path}: expected [model, optimiser, epoch, step, moving average], got a list of {len(loaded)}"
        )
    weights = as_tensors(loaded[0], f"{path}, model")
    if len(loaded) == 4:
        return weights
    average = as_tensors(loaded[4], f"{path}, moving average")
    # The levels are no parameters, so they have no average.
    if average.keys() != weights.keys() - {"sigmas"}:
        differing = sorted(average.keys() ^ (weights.keys() - {"sigmas"}))
        raise ValueError(f"{path}, moving average: expected the names of the model's weights, {differing[0]} differs")
    return weights | average


def _first_layer(weights: dict[str, Tensor], path: str) -> Tensor:
    layer = _named("begin_conv.weight", weights, path)
    if layer.ndim != 4 or layer.shape[1] != 2:
        raise ValueError(
            f"{path}: expected a network of 2 channels (real and imaginary part), "
            f"begin_conv.weight [features, 2, 3, 3], got {list(layer.shape)}"
        )
    return layer


def _levels(weights: dict[str, Tensor], path: str) -> Tensor:
    sigmas = _named("sigmas", weights, path)
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise ValueError(f"{path}: expected sigmas to be two noise levels or more, got {list(sigmas.shape)}")
    if not all(a > b > 0 for a, b in pairwise(sigmas.tolist())):
        raise ValueError(
            f"{path}: expected sigmas to be positive and to fall, "
            f"got {len(sigmas)} from {sigmas[0]:g} to {sigmas[-1]:g}"
        )
    return sigmas


def _named(name: str, weights: dict[str, Tensor], path: str) -> Tensor:
    if name not in weights:
        raise ValueError(
            f"{path}: expected the state dict of NCSNv2 with {name}, got {len(weights)} tensors such as {min(weights)}"
        )
    return weights[name]
