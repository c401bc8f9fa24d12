"""The product of Gaussian mixtures diffusion model: a prior of 1578 numbers."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from threading import Lock
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from recon_core.priors.pogmdm import experts, shearlets
from recon_core.priors.pogmdm.experts import SPREAD, Tables, all_weights

Diffusion = Literal["tight", "published"]
BuiltT = TypeVar("BuiltT")

# Where the greatest gain of each filter is looked for: fine enough for 0.1 %, the same for images of all sizes.
_GRID = (128, 128)
_NODES = 4097
_NODES_IN_TRAINING = 513

# Power per pixel and real channel of heads of maximum one: 0.03 / frequency^2 (radians per pixel), finite at zero.
_POWER = 0.03
_LEAST_FREQUENCY = 0.005


@dataclass(frozen=True)
class PoGMDMConfig:
    """What is fixed about a model.

    Args:
        diffusion: what noise does to the experts, see `PoGMDM`.
        share: power to which a tight model raises each of its experts; a published one takes them as they are.

    Raises:
        ValueError: an unknown rule, or a share that is out of range.
    """

    diffusion: Diffusion = "tight"
    share: float = 0.15

    def __post_init__(self) -> None:
        if self.diffusion not in ("tight", "published"):
            raise ValueError(f'expected the diffusion "tight" or "published", got {self.diffusion!r}')
        if not 0 < self.share <= 1:
            raise ValueError(f"expected a share above 0, at most 1, got {self.share}")


@dataclass(frozen=True)
class _System:
    """Filters for one image size.

    Args:
        filters: frequency responses with their factors, `[20, y, x // 2 + 1]`.
        power: their squared magnitudes.
        speed: xi, how fast noise widens the components of each, `[20]`.
        rest: squared magnitude of the low-pass filter, `[y, x // 2 + 1]`.
        rest_variance: of what it passes in clean images, `[y, x // 2 + 1]`.
    """

    filters: Tensor
    power: Tensor
    speed: Tensor
    rest: Tensor
    rest_variance: Tensor


class _Recent(Generic[BuiltT]):
    """What was built last, for a few keys: threads may share it, and a copy starts empty."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._built: OrderedDict[Hashable, BuiltT] = OrderedDict()
        self._lock = Lock()

    def __reduce__(self) -> tuple[type[_Recent[BuiltT]], tuple[int]]:
        return type(self), (self._kept,)

    def get(self, key: Hashable, build: Callable[[], BuiltT]) -> BuiltT:
        with self._lock:
            if key not in self._built:
                # Tensors of inference mode would break a later call that is differentiated.
                with torch.inference_mode(False), torch.no_grad():
                    self._built[key] = build()
            self._built.move_to_end(key)
            while len(self._built) > self._kept:
                self._built.popitem(last=False)
            return self._built[key]


class PoGMDM(nn.Module):
    """Product of Gaussian mixtures diffusion model (Zach et al., J Math Imaging Vis 66, 2024; paper 003).

    The density of a real image is a product, over pixels and over 20 shearlets, of Gaussian mixtures of the filter
    responses; the real and the imaginary part count as independent images. White noise of level sigma widens the
    components of filter k to the variance `spread^2 + xi_k^2 sigma^2`. This is exact for filters that pass disjoint
    bands with the constant gain xi_k; the rule for others is a choice:

    - "published": xi_k is the greatest gain of the filter before its factor gamma_k. The published weights learnt with
      it up to sigma 0.4; beyond, the shearlets, which overlap sixfold, pull sixfold, and nothing acts on the mean.
    - "tight": the shearlets are scaled to the same greatest gain, and divided by the root of their summed power, that
      of a low-pass filter included: at high noise they share every frequency out exactly. The low-pass filter has no
      numbers of its own: what it passes is Gaussian, of the power 1 / frequency^2 of images.

    A response holds only a small part of the noise, of which twenty overlapping filters each tell. A tight model
    therefore raises each expert to the power `share` and widens its components by `share * xi_k^2 sigma^2`, about
    the noise that its response does hold: sharp enough to tell an edge from noise, and together still exact for
    Gaussian experts, at every level.

    In evaluation mode the numbers count as constants: filters are kept for the last few image sizes and tables for
    the last few noise levels. In training a table is made for each distinct level of a batch: share levels between
    images to save time. Filters wrap around at the borders of a patch, so take large ones (128 and
    more); the rate that suits is in `recon_core.training.recipes`.

    Args:
        config: of the model.
    """

    def __init__(self, config: PoGMDMConfig) -> None:
        super().__init__()
        self.config = config
        self.low_pass = nn.Parameter(shearlets.flat_low_pass().float())
        self.fan = nn.Parameter(shearlets.fan_filter().float())
        self.weights = nn.Parameter(experts.student_weights().float().repeat(shearlets.FILTERS, 1))
        # Responses of heads then reach over enough components for their spread to be told from noise.
        self.gain = nn.Parameter(torch.full((shearlets.FILTERS,), 2.0))
        self._systems: _Recent[_System] = _Recent(3)
        self._tables: _Recent[Tables] = _Recent(8)

    def forward(self, image: Tensor, sigma: Tensor) -> Tensor:
        """Mean of the clean images given the noisy ones.

        Args:
            image: `[n, channels, y, x]`: real and imaginary part, or magnitudes.
            sigma: noise level of each, `[n]`.
        """
        return image + sigma[:, None, None, None] ** 2 * self.score(image, sigma)

    def score(self, image: Tensor, sigma: Tensor, exact: bool = False) -> Tensor:
        """Gradient of the log density of noisy images.

        Args:
            image: `[n, channels, y, x]`.
            sigma: noise level of each, `[n]`.
            exact: sum over all components at every pixel instead of looking it up: slow, for comparison.
        """
        system = self._system(image)
        levels, level = torch.unique(sigma, return_inverse=True)
        variance = self._variance(levels, system)
        spectrum = torch.fft.rfft2(image)
        response = _responses(spectrum, system, image)
        if exact:
            each = variance[level, None, :, None, None]
            centre = experts.mixture_mean(response, all_weights(self.weights)[:, None, None], each) / each
        else:
            centre = self._table(levels, system).look_up(response, level)
        pulled = self._power_of_experts * torch.einsum("nckyx,kyx->ncyx", torch.fft.rfft2(centre), system.filters)
        pulled = pulled - self._stiffness(levels, variance, system)[level, None] * spectrum
        score: Tensor = torch.fft.irfft2(pulled, s=image.shape[-2:])
        return score

    def potential(self, image: Tensor, sigma: Tensor) -> Tensor:
        """Negative logarithm of the density of noisy images, `[n]`, but for a constant; by the exact sum.

        Args:
            image: `[n, channels, y, x]`.
            sigma: noise level of each, `[n]`.
        """
        system = self._system(image)
        spectrum = torch.fft.rfft2(image)
        variance = self._variance(sigma, system)[:, None, :, None, None]
        weights = all_weights(self.weights)[:, None, None]
        energy = experts.potential(_responses(spectrum, system, image), weights, variance).sum((1, 2, 3, 4))
        rest = torch.fft.irfft2(_rest_stiffness(sigma, system)[:, None] * spectrum, s=image.shape[-2:])
        return self._power_of_experts * energy + 0.5 * torch.sum(rest * image, dim=(1, 2, 3))

    def weight(self, sigma: Tensor) -> Tensor:
        """Weight of the squared error that asks equally much of the model at every noise level, `[n]`.

        The squared error of denoised heads grows as about the power 4/3 of the level. Score matching proper has the
        weight `1 / sigma^2`: low levels, where little can be gained, then decide over the others.
        """
        return sigma ** (-4 / 3)

    @torch.no_grad()
    def project_(self) -> None:
        """Brings the numbers to the nearest ones that are allowed; to be called after every step of a training.

        The weights of a mixture are a density, the low-pass filter has the sum one, the magnitudes of the fan the sum
        one, and the factors gamma are not negative.
        """
        self.weights.copy_(_on_simplex(all_weights(self.weights))[:, experts.COMPONENTS // 2 :])
        self.low_pass.sub_((self.low_pass.sum() - 1) / len(self.low_pass))
        self.fan.copy_(self.fan.sign() * _on_simplex(self.fan.abs().flatten()).reshape(self.fan.shape))
        self.gain.clamp_(min=0)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for `AdaBelief`, with their blocks and the paper's ratio of rates, for the rate one."""
        return [
            {"params": [self.weights], "block": (1,), "lr": 1.0},
            {"params": [self.gain], "block": (), "lr": 0.5},
            {"params": [self.low_pass], "block": (0,), "lr": 0.5},
            {"params": [self.fan], "block": (0, 1), "lr": 0.5},
        ]

    def _system(self, image: Tensor) -> _System:
        size = (image.shape[-2], image.shape[-1])
        if self.training:
            return self._built(size)
        return self._systems.get((size, self._state()), lambda: self._built(size))

    def _table(self, levels: Tensor, system: _System) -> Tables:
        def built(nodes: int) -> Tables:
            return Tables.build(all_weights(self.weights), self._variance(levels, system), nodes)

        if self.training:
            return built(_NODES_IN_TRAINING)
        return self._tables.get((tuple(levels.tolist()), self._state()), lambda: built(_NODES))

    def _state(self) -> Hashable:
        """Differs whenever the numbers do: they are few, and versions of tensors are not counted in inference mode."""
        numbers = torch.cat([parameter.detach().flatten() for parameter in self.parameters()])
        return numbers.device, numbers.dtype, tuple(numbers.tolist())

    def _built(self, size: tuple[int, int]) -> _System:
        filters = shearlets.spectra(self.low_pass, self.fan, size)
        greatest = shearlets.spectra(self.low_pass, self.fan, _GRID).abs().flatten(1).amax(1)
        power = _power(size, greatest)
        if self.config.diffusion == "published":
            filters = filters * self.gain[:, None, None]
            return _System(filters, filters.abs() ** 2, greatest, torch.zeros_like(power), power)
        filters = filters / greatest[:, None, None]
        rest = shearlets.coarse_spectrum(self.low_pass, size).abs() ** 2
        total = (filters.abs() ** 2).sum(0) + rest
        speed = self.gain * greatest
        filters = filters * (speed[:, None, None] * torch.rsqrt(total))
        return _System(filters, filters.abs() ** 2, speed, rest / total, power)

    def _variance(self, levels: Tensor, system: _System) -> Tensor:
        """Of the components at each noise level, `[levels, filters]`."""
        return SPREAD**2 + self._power_of_experts * levels[:, None] ** 2 * system.speed**2

    def _stiffness(self, levels: Tensor, variance: Tensor, system: _System) -> Tensor:
        """What the score takes of every frequency, `[levels, y, x // 2 + 1]`: the linear part of all experts."""
        shearlets_alone = self._power_of_experts * torch.einsum("lk,kyx->lyx", 1 / variance, system.power)
        return shearlets_alone + _rest_stiffness(levels, system)

    @property
    def _power_of_experts(self) -> float:
        return self.config.share if self.config.diffusion == "tight" else 1.0


def _responses(spectrum: Tensor, system: _System, image: Tensor) -> Tensor:
    """Of all filters, `[n, channels, 20, y, x]`."""
    responses: Tensor = torch.fft.irfft2(spectrum[:, :, None] * system.filters.conj(), s=image.shape[-2:])
    return responses


def _rest_stiffness(levels: Tensor, system: _System) -> Tensor:
    """The same of the low-pass filter's Gaussian alone."""
    return system.rest / (levels[:, None, None] ** 2 + system.rest_variance)


def _power(size: tuple[int, int], like: Tensor) -> Tensor:
    """Mean power of images at the frequencies of `rfft2`, `[y, x // 2 + 1]`."""
    along_y = 2 * math.pi * torch.fft.fftfreq(size[0], dtype=like.dtype, device=like.device)
    along_x = 2 * math.pi * torch.fft.rfftfreq(size[1], dtype=like.dtype, device=like.device)
    square: Tensor = along_y[:, None] ** 2 + along_x**2 + _LEAST_FREQUENCY**2
    return _POWER * square.reciprocal()


def _on_simplex(values: Tensor) -> Tensor:
    """The nearest point whose entries along the last axis are not negative and of sum one."""
    falling = values.sort(dim=-1, descending=True).values
    count = torch.arange(1, values.shape[-1] + 1, dtype=values.dtype, device=values.device)
    excess = ((falling.cumsum(-1) - 1) / count).amax(-1, keepdim=True)
    return (values - excess).clamp(min=0)
