"""The product of Gaussian mixtures diffusion model: a prior of 1578 numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Generator, Tensor, nn

from recon_core.cache import ContentCache, Sized, content_key
from recon_core.priors.pogmdm import experts, shearlets
from recon_core.priors.pogmdm.experts import SPREAD, Tables, all_weights
from recon_core.priors.pogmdm.shearlets import Frequencies

Diffusion = Literal["tight", "published"]
BuiltT = TypeVar("BuiltT", bound=Sized)

# Where the greatest gain of each filter and its share of white noise are looked for: fine enough for 0.1 %, the same
# for images of all sizes.
_GRID = (128, 128)
_NODES = 4097
_NODES_IN_TRAINING = 513
_CACHE_BYTES = 128 << 20

# By how much the shearlets of a tight model are stretched: what one system leaves over, the next one sees.
_STRETCHES = (1, 4, 16)
# The shears of one scale of one cone are filtered at a time, so that all that is in work is small: much faster than
# all filters at once.
_FANS = tuple(slice(k, k + len(shearlets.SHEARS)) for k in range(0, shearlets.FILTERS, len(shearlets.SHEARS)))
# Experts count for this much more than a response holds of the noise: found by trial, between 1 and 4.
_EMPHASIS = 2.0
# Moduli are differentiable at zero.
_LEAST_SQUARE = 1e-12

# Noise levels at which the size of the score is corrected.
_CALIBRATED = (0.005, 10.0)
_CALIBRATIONS = 23

# Power per pixel and real channel of heads of maximum one: 0.03 / frequency^2 (radians per pixel), finite at zero.
_POWER = 0.03
_LEAST_FREQUENCY = 0.005


@dataclass(frozen=True)
class PoGMDMConfig:
    """What is fixed about a model.

    Args:
        diffusion: what noise does to the experts, see `PoGMDM`.

    Raises:
        ValueError: an unknown rule.
    """

    diffusion: Diffusion = "tight"

    def __post_init__(self) -> None:
        if self.diffusion not in ("tight", "published"):
            raise ValueError(f'expected the diffusion "tight" or "published", got {self.diffusion!r}')


@dataclass(frozen=True)
class _Octave:
    """The filters of one stretch, for one image size. They see the image on a grid that is no finer than they need.

    Args:
        grid: its size, `(y, x)`.
        pixels: of the image for each of the grid.
        filters: frequency responses with their factors, `[20, y, x // 2 + 1]` of the grid.
        power: their squared magnitudes.
        speed: xi, how fast noise widens the components of each, `[20]`.
        share: power to which each expert is raised, `[20]`.
    """

    grid: tuple[int, int]
    pixels: float
    filters: Tensor
    power: Tensor
    speed: Tensor
    share: Tensor

    def of(self, filters: slice) -> _Octave:
        """Some of the filters."""
        parts = (self.filters, self.power, self.speed, self.share)
        return _Octave(self.grid, self.pixels, *(part[filters] for part in parts))

    def responses(self, spectrum: Tensor) -> Tensor:
        """Of all filters to a spectrum on the grid, `[n, channels, 20, y, x]`."""
        seen = (spectrum / self.pixels)[:, :, None] * self.filters.conj()
        responses: Tensor = torch.fft.irfft2(seen, s=self.grid)
        return responses

    def pull(self, slope: Tensor) -> Tensor:
        """Spectrum on the grid of what slopes at the responses pull the image by."""
        # Several times faster than einsum, which would copy all spectra to another order.
        spectrum: Tensor = (torch.fft.rfft2(slope) * self.filters).sum(2)
        return self.pixels * spectrum


@dataclass(frozen=True)
class _System:
    """Filters for one image size.

    Args:
        numbers: digest of those of the model that it was built from; empty where it is not kept.
        octaves: the finest first.
        rest: squared magnitude of the low-pass filter, `[y, x // 2 + 1]`.
        rest_variance: of what it passes in clean images, `[y, x // 2 + 1]`.
    """

    numbers: bytes
    octaves: tuple[_Octave, ...]
    rest: Tensor
    rest_variance: Tensor

    @property
    def nbytes(self) -> int:
        """Memory held."""
        filters = sum(octave.filters.nbytes + octave.power.nbytes for octave in self.octaves)
        return filters + self.rest.nbytes + self.rest_variance.nbytes


class PoGMDM(nn.Module):
    """Product of Gaussian mixtures diffusion model (Zach et al., J Math Imaging Vis 66, 2024; paper 003).

    The density of an image is a product, over pixels and over 20 shearlets, of Gaussian mixtures of the filter
    responses. White noise of level sigma widens the components of filter k to the variance
    `spread^2 + xi_k^2 sigma^2`. This is exact for filters that pass disjoint bands with the constant gain xi_k; the
    rule for others is a choice:

    - "published": xi_k is the greatest gain of the filter before its factor gamma_k, and the real and the imaginary
      part of an image count as independent images. The published weights learnt with it up to sigma 0.4; beyond, the
      shearlets, which overlap sixfold, pull sixfold, and nothing acts on the mean.
    - "tight" differs in four things, at the same number of parameters:
      The shearlets are scaled to the same greatest gain, and divided by the root of their summed power, that of a
      low-pass filter included: at high noise they share every frequency out exactly.
      What the low-pass filter passes, a sixteenth of the noise, is seen by the same experts through the same
      shearlets, stretched fourfold, and what these leave over once more: edges look alike at all scales. What is left
      then is Gaussian, of the power 1 / frequency^2 of images.
      The experts judge the modulus of a complex response: real and imaginary part have their edges at the same places.
      A response holds only a small part of the noise, of which many overlapping filters each tell. Each expert is
      therefore raised to a power, its share, and its components widen by `share xi_k^2 sigma^2`: the share is what its
      response holds of white noise, times a constant. That is sharp enough to tell an edge from noise, and together
      still exact for Gaussian experts, at every level.

    Experts that overlap are not independent, so that the score of their product comes out too small at low noise. It is
    multiplied by `slopes`, one number for each of 23 noise levels, which `calibrate_` measures after a training.

    In evaluation mode the numbers count as constants: filters and tables are kept for the last few image sizes and
    noise levels. In training a table is made for each distinct level of a batch: share levels between images to save
    time. Filters wrap around at the borders of a patch, so take large ones (128 and more); the rate that suits is in
    `recon_core.training.recipes`.

    Args:
        config: of the model.
    """

    slopes: Tensor

    def __init__(self, config: PoGMDMConfig) -> None:
        super().__init__()
        self.config = config
        self.low_pass = nn.Parameter(shearlets.flat_low_pass().float())
        self.fan = nn.Parameter(shearlets.fan_filter().float())
        self.weights = nn.Parameter(experts.student_weights().float().repeat(shearlets.FILTERS, 1))
        # Responses of heads then reach over enough components for their spread to be told from noise.
        self.gain = nn.Parameter(torch.full((shearlets.FILTERS,), 2.5))
        self.register_buffer("slopes", torch.ones(_CALIBRATIONS))
        self._built = ContentCache(_CACHE_BYTES)

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
        spectrum = torch.fft.rfft2(image)
        pulled = -_rest_stiffness(levels, system)[level, None] * spectrum
        for octave in system.octaves:
            seen, tables = _held(spectrum, octave.grid), self._tables(levels, octave, system)
            for fan in _FANS:
                part = self._pull(seen, octave.of(fan), tables.of(fan), level, exact)
                pulled = _plus(pulled, part, octave.grid)
        score: Tensor = torch.fft.irfft2(pulled, s=image.shape[-2:])
        return self._slope(sigma)[:, None, None, None] * score

    def potential(self, image: Tensor, sigma: Tensor) -> Tensor:
        """Negative logarithm of the density of noisy images, `[n]`, but for a constant; by the exact sum.

        Args:
            image: `[n, channels, y, x]`.
            sigma: noise level of each, `[n]`.
        """
        system, weights = self._system(image), all_weights(self.weights)[:, None, None]
        spectrum = torch.fft.rfft2(image)
        rest = torch.fft.irfft2(_rest_stiffness(sigma, system)[:, None] * spectrum, s=image.shape[-2:])
        energy: Tensor = 0.5 * torch.sum(rest * image, dim=(1, 2, 3))
        for octave in system.octaves:
            judged = self._judged(octave.responses(_held(spectrum, octave.grid)))
            variance = _variance(sigma, octave)[:, None, :, None, None]
            each = experts.potential(judged, weights, variance).sum((1, 3, 4))
            energy = energy + octave.pixels * (each * octave.share).sum(1)
        return self._slope(sigma) * energy

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

    @torch.no_grad()
    def calibrate_(self, images: Tensor, noise: Tensor, generator: Generator) -> None:
        """Makes the predicted noise of the right size at every level: the true noise has the slope one against it.

        That holds for the posterior mean (Tweedie's formula), and is the multiple of the score with the least error.
        Of images that hold noise already, what is added is known, and its mean given the sum is its share of the
        variance times that of all noise. Levels at which less would be added than is there get the slope of the first
        one above.

        Args:
            images: `[n, channels, y, x]` on the unit scale.
            noise: standard deviation per channel of the noise in each, `[n]`; zero for clean ones.
            generator: of the noise that is added.
        """
        self.slopes.fill_(1.0)
        found = []
        lowest, highest = map(math.log10, _CALIBRATED)
        for level in torch.logspace(lowest, highest, _CALIBRATIONS).tolist():
            sigma = (math.sqrt(2) * noise).clamp_min(level)
            variance = sigma**2 - noise**2
            added = variance.sqrt()[:, None, None, None] * torch.randn(images.shape, generator=generator).to(images)
            # One image at a time: the responses to all filters are large.
            both = zip((images + added)[:, None], sigma[:, None], strict=True)
            predicted = torch.cat([x - self(x, told) for x, told in both])
            share = (variance / sigma**2)[:, None, None, None]
            found.append((added / share * predicted).sum() / predicted.square().sum())
        self.slopes.copy_(torch.stack(found))

    def _slope(self, sigma: Tensor) -> Tensor:
        """Between those of the levels, on a logarithmic scale."""
        lowest, highest = map(math.log, _CALIBRATED)
        place = ((sigma.log() - lowest) / (highest - lowest)).clamp(0, 1) * (_CALIBRATIONS - 1)
        below = place.long().clamp(max=_CALIBRATIONS - 2)
        slopes = self.slopes.to(sigma)
        return torch.lerp(slopes[below], slopes[below + 1], place - below)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for `AdaBelief`, with their blocks and the paper's ratio of rates, for the rate one."""
        return [
            {"params": [self.weights], "block": (1,), "lr": 1.0},
            {"params": [self.gain], "block": (), "lr": 0.5},
            {"params": [self.low_pass], "block": (0,), "lr": 0.5},
            {"params": [self.fan], "block": (0, 1), "lr": 0.5},
        ]

    def _pull(self, spectrum: Tensor, octave: _Octave, tables: Tables, level: Tensor, exact: bool) -> Tensor:
        """What the experts of some filters add to the spectrum of the score, on their grid."""
        response = octave.responses(spectrum)
        judged = self._judged(response)
        centre = tables.exact(judged, level) if exact else tables.look_up(judged, level)
        centre = centre * octave.share[:, None, None]
        if judged is not response:  # the slope at a modulus points along the response
            centre = centre / judged * response
        stiffness = torch.einsum("lk,kyx->lyx", octave.share / tables.variance, octave.power)
        return octave.pull(centre) - stiffness[level, None] * spectrum

    def _judged(self, response: Tensor) -> Tensor:
        """What the experts look at: responses, or moduli `[n, 1, 20, y, x]` of all channels."""
        if self.config.diffusion == "published":
            return response
        return (response.square().sum(1, keepdim=True) + _LEAST_SQUARE).sqrt()

    def _system(self, image: Tensor) -> _System:
        size = (image.shape[-2], image.shape[-1])
        # The numbers as they are now; they are few, so that they are looked at every time.
        numbers = content_key(*self.parameters()) if self._keeps else b""
        return self._kept((numbers, size), lambda: self._built_system(size, numbers))

    def _tables(self, levels: Tensor, octave: _Octave, system: _System) -> Tables:
        nodes = _NODES_IN_TRAINING if self.training else _NODES
        variance = _variance(levels, octave)
        key = (system.numbers, variance, nodes)
        return self._kept(key, lambda: Tables.build(all_weights(self.weights), variance, nodes))

    @property
    def _keeps(self) -> bool:
        """In evaluation mode, but not within derivatives of `torch.func`: their tensors have no values to look at."""
        return not (self.training or torch._C._are_functorch_transforms_active())

    def _kept(self, key: tuple[Any, ...], build: Callable[[], BuiltT]) -> BuiltT:
        """What is built from the numbers, kept where that is sound."""
        if not self._keeps:
            return build()

        def constant() -> BuiltT:
            # Tensors of inference mode would break a later call that is differentiated.
            with torch.inference_mode(False), torch.no_grad():
                return build()

        return self._built.get(content_key(key), constant)

    def _built_system(self, size: tuple[int, int], numbers: bytes) -> _System:
        greatest = self._spectra(Frequencies.of(_GRID, self.low_pass)).abs().flatten(1).amax(1)
        power = _power(Frequencies.of(size, greatest))
        if self.config.diffusion == "published":
            filters = self._spectra(Frequencies.of(size, greatest)) * self.gain[:, None, None]
            whole = _Octave(size, 1.0, filters, filters.abs() ** 2, greatest, torch.ones_like(greatest))
            return _System(numbers, (whole,), torch.zeros_like(power), power)
        speed, octaves = self.gain * greatest, []
        reference, _ = self._tight(_GRID, greatest)
        banks, rest = self._tight(size, greatest)
        for stretch, alike, bank in zip(_STRETCHES, reference, banks, strict=True):
            grid, filters = _grid(size, stretch), speed[:, None, None] * bank
            share = (_EMPHASIS * _noise_passed(alike, _GRID, _grid(_GRID, stretch))).clamp(max=1)
            pixels = math.prod(size) / math.prod(grid)
            octaves.append(_Octave(grid, pixels, filters, filters.abs() ** 2, speed, share))
        return _System(numbers, tuple(octaves), rest, power)

    def _tight(self, size: tuple[int, int], greatest: Tensor) -> tuple[list[Tensor], Tensor]:
        """Filters of every stretch, and the power of the low-pass filter with which they pass all frequencies alike."""
        banks = []
        for stretch in _STRETCHES:
            frequencies = Frequencies.of(size, greatest, _grid(size, stretch))
            bank = self._spectra(frequencies * stretch) / greatest[:, None, None]
            banks.append(bank * self._left_over(frequencies, stretch))
        rest = self._left_over(Frequencies.of(size, greatest), math.inf).abs() ** 2
        total = rest
        for stretch, bank in zip(_STRETCHES, banks, strict=True):
            total = _plus(total, (bank.abs() ** 2).sum(0), _grid(size, stretch))
        scale = total.rsqrt()
        banks = [bank * _held(scale, _grid(size, stretch)) for stretch, bank in zip(_STRETCHES, banks, strict=True)]
        return banks, rest / total

    def _spectra(self, frequencies: Frequencies) -> Tensor:
        return shearlets.spectra(self.low_pass, self.fan, frequencies)

    def _left_over(self, frequencies: Frequencies, stretch: float) -> Tensor:
        """What all octaves before this stretch pass on, `[y, x // 2 + 1]`."""
        passed = torch.ones(1, 1, dtype=self.low_pass.dtype, device=self.low_pass.device)
        for finer in (s for s in _STRETCHES if s < stretch):
            passed = passed * shearlets.coarse_spectrum(self.low_pass, frequencies * finer)
        return passed


def _variance(levels: Tensor, octave: _Octave) -> Tensor:
    """Of the components at each noise level, `[levels, filters]`."""
    return SPREAD**2 + octave.share * levels[:, None] ** 2 * octave.speed**2


def _rest_stiffness(levels: Tensor, system: _System) -> Tensor:
    """What the Gaussian of the low-pass filter takes of every frequency, `[levels, y, x // 2 + 1]`."""
    return system.rest / (levels[:, None, None] ** 2 + system.rest_variance)


def _power(frequencies: Frequencies) -> Tensor:
    """Mean power of images, `[y, x // 2 + 1]`."""
    square: Tensor = frequencies.along_y[:, None] ** 2 + frequencies.along_x**2 + _LEAST_FREQUENCY**2
    return _POWER * square.reciprocal()


def _noise_passed(bank: Tensor, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Part of white noise that each filter passes, `[20]`: the energy of its impulse response."""
    energy: Tensor = torch.fft.irfft2(bank, s=grid).square().sum((-2, -1))
    return energy * (math.prod(grid) / math.prod(size))


def _grid(size: tuple[int, int], stretch: int) -> tuple[int, int]:
    """That holds what the low-pass filter before a stretch passes: up to two fourths of `pi / stretch`."""
    if stretch == 1:
        return size
    return min(size[0], 2 * -(-size[0] // stretch)), min(size[1], 2 * -(-size[1] // stretch))


def _held(spectrum: Tensor, grid: tuple[int, int]) -> Tensor:
    """The frequencies of `rfft2` that a coarser grid holds; its highest ones, of two signs each, are left at zero."""
    shape = (grid[0], grid[1] // 2 + 1)
    if spectrum.shape[-2:] == shape:
        return spectrum
    held = spectrum.new_zeros(*spectrum.shape[:-2], *shape)
    rows, columns = _common(grid)
    held[..., rows, columns] = spectrum[..., rows, columns]
    return held


def _plus(spectrum: Tensor, part: Tensor, grid: tuple[int, int]) -> Tensor:
    """The sum with a spectrum on a coarser grid."""
    if spectrum.shape[-2:] == part.shape[-2:]:
        return spectrum + part
    rows, columns = _common(grid)
    total = spectrum.clone()
    total[..., rows, columns] += part[..., rows, columns]
    return total


def _common(grid: tuple[int, int]) -> tuple[Tensor, slice]:
    """Rows and columns of the frequencies of `rfft2` that a coarser grid and a finer one both hold."""
    highest_y, highest_x = ((n - 1) // 2 for n in grid)
    return torch.arange(-highest_y, highest_y + 1), slice(highest_x + 1)


def _on_simplex(values: Tensor) -> Tensor:
    """The nearest point whose entries along the last axis are not negative and of sum one."""
    falling = values.sort(dim=-1, descending=True).values
    count = torch.arange(1, values.shape[-1] + 1, dtype=values.dtype, device=values.device)
    excess = ((falling.cumsum(-1) - 1) / count).amax(-1, keepdim=True)
    return (values - excess).clamp(min=0)
