"""A small scan of images of Gaussian priors and mixtures of them, whose posteriors are known in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from recon_core.operators.encoding import Encoding
from recon_core.operators.linear_model import LinearModel
from recon_core.operators.sampling import sampling_operator
from recon_core.priors.prior import Convention, Prior
from recon_core.solvers.linear_problem import LinearProblem

from analytic import complex_noise, direct_sum, grid_trajectory, ring_of_coils

N = 12
CONVENTION = Convention("percentile99", 0.01, 160.0)


def white(deviation: float = 0.5, n: int = N) -> Tensor:
    """Variances of white images."""
    return torch.full((n, n), deviation**2, dtype=torch.float64)


def smooth(deviation: float = 0.5, n: int = N) -> Tensor:
    """Variances of smooth images: they fall with the distance from the centre of k-space."""
    k = torch.fft.fftfreq(n, dtype=torch.float64)
    falling = 1 / (0.01 + k[:, None] ** 2 + 2 * k**2)
    return deviation**2 * falling / falling.mean()


class Gaussian:
    """Images whose real and imaginary parts are Gaussian, of a covariance that a shift does not change.

    Args:
        variances: per real channel, of each point of the orthonormal FFT of that channel, `[y, x]`; symmetric.
        mean: complex `[y, x]`; zero by default.
    """

    def __init__(self, variances: Tensor, mean: Tensor | None = None) -> None:
        self.variances = variances
        self.mean = torch.zeros_like(variances).to(torch.complex128) if mean is None else mean

    def __call__(self, channels: Tensor, sigma: Tensor) -> Tensor:
        """The mean of the images given noisy ones: the Wiener filter."""
        share = self.variances / (self.variances + sigma[:, None, None, None] ** 2)
        centre = _channels(self.mean)
        return centre + torch.fft.ifft2(share * torch.fft.fft2(channels - centre)).real

    def log_density(self, channels: Tensor, sigma: Tensor) -> Tensor:
        """Of noisy images `[n, 2, y, x]`, up to a constant that all of one size share."""
        variances = self.variances + sigma[:, None, None, None] ** 2
        spectra = torch.fft.fft2(channels - _channels(self.mean), norm="ortho")
        return -(spectra.abs().square() / variances + variances.log()).sum((1, 2, 3)) / 2

    def covariance(self, level: float = 0.0) -> Tensor:
        """Per real channel, with noise of a level added: complex `[pixel, pixel]` without an imaginary part."""
        n = len(self.variances)
        pixels = torch.eye(n * n, dtype=torch.complex128).view(-1, n, n)
        return torch.fft.ifft2((self.variances + level**2) * torch.fft.fft2(pixels)).flatten(1).T

    def draw(self, seed: int = 0) -> Tensor:
        """One image."""
        noise = math.sqrt(2) * complex_noise(*self.variances.shape, seed=seed, dtype=torch.complex128)
        return self.mean + torch.fft.ifft2(self.variances.sqrt() * torch.fft.fft2(noise))


class Mixture:
    """Images that are of one of several Gaussians.

    Args:
        weights: how likely each is, of sum one.
        components: the Gaussians.
    """

    def __init__(self, weights: Sequence[float], components: Sequence[Gaussian]) -> None:
        self.weights = torch.tensor(weights, dtype=torch.float64)
        self.components = components

    def __call__(self, channels: Tensor, sigma: Tensor) -> Tensor:
        """The mean of the images given noisy ones."""
        logs = torch.stack([g.log_density(channels, sigma) for g in self.components], -1)
        shares = torch.softmax(logs + self.weights.log(), -1)
        means = torch.stack([g(channels, sigma) for g in self.components], -1)
        return (shares[:, None, None, None] * means).sum(-1)


def prior_of(denoiser: Gaussian | Mixture, convention: Convention = CONVENTION) -> Prior:
    return Prior(denoiser, convention, "the Gaussian prior")


class Watched(Prior):
    """Remembers the last noisy images: where a chain ended, before their noise was taken off."""

    def __init__(self, prior: Prior) -> None:
        super().__init__(prior.denoiser, prior.convention, prior.name)

    def denoise(self, image: Tensor, sigma: float | Tensor) -> Tensor:
        self.last = image
        return super().denoise(image, sigma)


@dataclass(frozen=True)
class Posterior:
    """What a Gaussian prior and the data say.

    Attributes:
        mean: complex `[y, x]`.
        covariance: of the complex pixels, E e e^H, `[pixel, pixel]`.
    """

    mean: Tensor
    covariance: Tensor

    def by_langevin(self, step: float) -> Posterior:
        """What `x <- x + step grad log p + sqrt(2 step) z` tends to, z of unit variance per real channel.

        Its covariance is too large by `1 / (1 - step / covariance)`: the sum of the geometric series of its moves.
        """
        identity = torch.eye(len(self.covariance), dtype=self.covariance.dtype)
        precision = torch.linalg.inv(self.covariance)
        return Posterior(self.mean, torch.linalg.solve(identity - step * precision, self.covariance))

    @property
    def deviation(self) -> Tensor:
        """Of the complex pixels, as `Estimate.deviation`: real `[y, x]`."""
        return self.covariance.diagonal().real.sqrt().view(self.mean.shape)


@dataclass(frozen=True)
class Scan:
    """A problem, and the same as a matrix that the operators had no part in.

    Attributes:
        problem: complex128, without slices: images are `[sample, y, x]`.
        matrix: unit A, `[sample of k-space, pixel]`.
        kspace: y, `[sample of k-space]`.
    """

    problem: LinearProblem
    matrix: Tensor
    kspace: Tensor

    @cached_property
    def precision(self) -> Tensor:
        """unit^2 A^H A, `[pixel, pixel]`."""
        return self.matrix.mH @ self.matrix

    def with_noise(self, covariance: Tensor) -> Scan:
        """The same data, were their noise not white but of this covariance E n n^H; the problem stays as it was."""
        values, vectors = torch.linalg.eigh(covariance)
        whitening = vectors @ torch.diag(values.rsqrt()).to(vectors) @ vectors.mH
        return Scan(self.problem, whitening @ self.matrix, whitening @ self.kspace)

    def posterior(self, prior: Gaussian, level: float = 0.0) -> Posterior:
        """Exact, for the prior with noise of a level added to its images.

        `exp(-|unit A x - y|^2 - (x - m)^H C^-1 (x - m) / 2)` has the covariance `(unit^2 A^H A + C^-1 / 2)^-1`.
        """
        inverse = torch.linalg.inv(prior.covariance(level)) / 2
        covariance = torch.linalg.inv(self.precision + inverse)
        mean = covariance @ (self.matrix.mH @ self.kspace + inverse @ prior.mean.flatten())
        return Posterior(mean.view(prior.mean.shape), covariance)

    def posterior_weights(self, prior: Mixture, level: float = 0.0) -> Tensor:
        """How likely each component is given the data, from the exact evidence `y ~ CN(A m, 1 + 2 A C A^H)`."""
        logs = []
        for weight, component in zip(prior.weights, prior.components, strict=True):
            spread = torch.eye(len(self.kspace)) + 2 * self.matrix @ component.covariance(level) @ self.matrix.mH
            residual = self.kspace - self.matrix @ component.mean.flatten()
            misfit = torch.vdot(residual, torch.linalg.solve(spread, residual)).real
            logs.append(weight.log() - torch.linalg.slogdet(spread).logabsdet - misfit)
        return torch.softmax(torch.stack(logs), 0)


def scan(truth: Tensor, unit: float = 8.0, every: int = 2, coils: int = 3, seed: int = 1) -> Scan:
    """Of every so many-th line and two at the centre, with white noise of unit variance per complex sample.

    Args:
        truth: in units, complex128 `[n, n]`.
        unit: physical intensity of one; with coil maps of unit norm a fully sampled image would have the noise level
            `1 / (sqrt(2) unit)`.
        every: so many-th line is sampled.
        coils: in a ring.
        seed: of the noise.
    """
    n = len(truth)
    lines = sorted({*range(0, n, every), n // 2 - 1, n // 2})
    trajectory, maps = grid_trajectory((n, n))[:, lines], ring_of_coils(n, coils)
    pixels = torch.eye(n * n, dtype=torch.complex128).view(-1, 1, n, n)
    matrix = unit * direct_sum(maps * pixels, trajectory).flatten(1).T
    kspace = matrix @ truth.flatten()
    kspace = kspace + complex_noise(*kspace.shape, seed=seed, dtype=torch.complex128)
    model = LinearModel(Encoding(sampling_operator(trajectory, (n, n))), maps)
    problem = LinearProblem.of(model, kspace.view(coils, len(lines), n))
    scaled = LinearProblem(model, problem.data, problem.energy, torch.full_like(problem.energy, unit))
    return Scan(scaled, matrix, kspace)


def _channels(image: Tensor) -> Tensor:
    return torch.view_as_real(image).movedim(-1, -3)
