"""The blind problem near a point: image, field and coil maps move together, to first order."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.linalg import solve_triangular

from recon_core.fourier import fft_centred, ifft_centred
from recon_core.solvers.blind_problem import BlindProblem, Whereabouts
from recon_core.solvers.conjugate_gradient import conjugate_gradient
from recon_core.solvers.linear_problem import complex_normal

_LEFT_TO_THE_FIELD = 0.05
"""Of the curvature along the field, what is about left of it once the image follows: 4 to 8 % on spirals of 8 coils."""

_LEFT_TO_THE_COILS = 0.5
"""The same of the curvature along the coil maps. A quarter to four times as much leads nearly as far."""

_ALIKE = 16.0
"""Pixels, of whichever grid, in which errors of the model are about alike: of coil maps, grid and denoised image.

On validation heads 8 is worse where coil maps are hard to find, and 30 where they are not.
"""

_LEAST_CAUTION = 4.0
"""How much less than all is believed of data whose misfit shows no errors of the model.

The image follows some of them so well that the misfit does not show them, above all with one coil.
"""

_AXES = (-2, -1)
_RIDGE = 1e-6
_TOLERANCE = 1e-3


class Change(NamedTuple):
    """Of all unknowns, or the gradient along them: of the image `[y, x]`, and of theta and q as in `Whereabouts`."""

    image: Tensor
    field: Tensor
    coils: Tensor


def whole(change: Tensor) -> Tensor:
    """What a centre that rests does not follow of a change."""
    return change


class Linearised:
    """`sum_c |unit A_c(psi + B dtheta, S_c + dS_c)(x + dx) - y_c|^2 + pull |x + dx - centre|^2`, the model to first
    order, and what is known of the coefficients beforehand, `caution |theta + dtheta|_P^2 / 2 + |q + dq|_Q^2`.

    Gauss and Newton: the model is linear in dx, dtheta and dq, `unit A dx + unit A' B dtheta + unit E dS C x`, and all
    share one application of the Toeplitz kernels.

    Nearly all that a smooth change of the field does to the data, the image can do as well: it has but to be filtered.
    Where the point k of k-space is visited at the time tau(k), `A' v = A F^H (-2 pi i tau) F v` but for what field and
    coil maps add, and the same holds for coil maps, of which `sum_c conj(S_c) dS_c` is a factor of the image. In the
    unknowns themselves conjugate gradients need hundreds of iterations to tell field and image apart. So here the image
    follows by itself, `dx = dx' - U dtheta - V dq` with these approximations of what it can do, and dx' is what is left
    to it: of the coupling little remains, and dtheta has a curvature of its own. The rest is made well conditioned by a
    circulant matrix (for the image, from the density of the samples as the coil maps spread it) and Cholesky factors of
    what each pixel by itself would tell of field and maps.

    A centre that is a denoised image follows the image in part. Towards such a one the pull on the right-hand side is
    whole, and its curvature that part alone which is not followed (`prior_curvature`): the step is Newton's for the
    prior too.
    """

    def __init__(
        self,
        problem: BlindProblem,
        image: Tensor,
        at: Whereabouts,
        pull: float,
        not_followed: Callable[[Tensor], Tensor] = whole,
    ) -> None:
        """Takes the point.

        Args:
            problem: in the units of a prior.
            image: x, `[y, x]`.
            at: theta and q.
            pull: precision of each complex pixel about the centre, `1 / (2 level^2)`.
            not_followed: the part of a change of the image `[y, x]` that the centre does not follow.
        """
        self._problem, self._image, self._at, self._pull = problem, image, at, pull
        self._not_followed = not_followed
        self._maps = problem.maps(at.coils)
        self._squares = self._maps.abs().square().sum(0).clamp_min(torch.finfo(self._maps.real.dtype).tiny)
        self._model = problem.uncombined.with_field(problem.field(at.field))
        self._moved = image * problem.in_range(at.field)
        self._slope = self._model.slope(problem.unit * self._moved)
        self._seen = self._model.expand(problem.unit * image)
        density = problem.unit**2 * self._density_through_the_coils()
        self._whiten = (density + pull).rsqrt()
        self._precision = Whereabouts(self.caution * problem.basis.precision / 2, problem.coil_errors.deviation**-2)
        self._follow = -2j * math.pi * problem.times * density / (density + pull)
        self._factors = Whereabouts(*map(torch.linalg.cholesky, self._curvatures()))

    @cached_property
    def misfit(self) -> float:
        """`|unit A x - y|^2` at the point: costs nothing beside a step, which needs the residual too."""
        seen = (self._coil_images.conj() * (self._problem.data_images + self._residual)).sum().real
        return float(self._problem.energy - seen)

    @property
    def misfit_of_noise(self) -> float:
        """The same of noise alone, once the image has followed it as far as the pull lets it.

        The trace of `(1 - H)^2`, with H for what the image follows of the data, taken for diagonal in k-space, where it
        is `density / (density + pull)`: it follows a little less. Where no coil sees it, it follows none. That the maps
        follow noise too is left out.
        """
        seen = self._maps.abs().sum(0).gt(0).double().mean()
        density = (self._whiten**-2 - self._pull) / seen  # `_whiten` has its mean with the pixels that no coil sees
        left_open = self._pull / (density + self._pull)
        return self._problem.samples - float(seen * (1 - left_open.square()).sum())

    @cached_property
    def caution(self) -> float:
        """How many times less the data tell of the field than if noise were all that is wrong with them.

        The mean of L samples, each with noise of unit variance and an error of the model of variance s that is alike
        in all of them, has the variance (1 + L s) / L: they tell 1 + L s times less. Such are all samples that tell
        of a few pixels. And s is what the misfit has beyond that of noise: much where the field is far off, and near it
        what is left of the other errors.
        """
        beyond = self.misfit - self.misfit_of_noise
        return max(1 + _ALIKE * beyond / self._image.numel(), _LEAST_CAUTION)

    def step(self, centre: Tensor, iterations: int) -> Change:
        """To the minimum, for a centre `[y, x]`."""
        along = self._transposed(self._residual)
        return self._solve(
            Change(
                along.image + self._pull * (centre - self._image),
                along.field - self._precision.field * self._at.field,
                along.coils - self._precision.coils * self._at.coils,
            ),
            iterations,
        )

    def draw(self, generator: Generator, iterations: int) -> Change:
        """A draw from the Gaussian with this curvature.

        Noise as the data and the priors hold it, sent through the same equations, has that covariance (Papandreou and
        Yuille, NIPS 2010), the centre at rest. It is what is left open of the field where image and maps are open too.
        """
        maps, sampling = self._maps, self._problem.encoding.sampling
        noise = complex_normal((len(maps), 1, *sampling.trajectory.shape[1:]), self._image, generator)
        along = self._transposed(self._model.data_images(noise))
        field = torch.randn(along.field.shape, generator=generator, dtype=along.field.dtype, device=along.field.device)
        return self._solve(
            Change(
                along.image + math.sqrt(self._pull) * complex_normal(along.image.shape, along.image, generator),
                # The likelihood is exp(-|.|^2): of real unknowns, a precision of two halves.
                along.field + self._precision.field.mul(0.5).sqrt() * field,
                along.coils + self._precision.coils.sqrt() * complex_normal(along.coils.shape, along.image, generator),
            ),
            iterations,
        )

    @property
    def _coil_images(self) -> Tensor:
        """S C x of each coil, `[coil, term, y, x]`."""
        return self._maps[:, None] * self._seen

    @cached_property
    def _residual(self) -> Tensor:
        """E^H (y - A x) of each coil, `[coil, term, y, x]`."""
        return self._problem.data_images - self._model.gram(self._coil_images)

    def _curvatures(self) -> tuple[Tensor, Tensor]:
        """About what is left to see of field and maps, both `[function, function]`.

        As if the samples saw each pixel for itself, with the strength that they see the whole image with: of the maps'
        functions as it is, which is above all the densely sampled centre, and of the field what `2 pi i tau F v` has
        where they are, within 5 % on spirals of heads.
        """
        bright, moved = ((self._problem.unit * image).abs().square() for image in (self._image, self._moved))
        spectrum = fft_centred(self._image, _AXES).abs().square()
        strength = self._problem.density * spectrum / spectrum.sum()
        turned = (strength * (2 * math.pi * self._problem.times).square()).sum()
        field = _gram(self._problem.basis.functions, _LEFT_TO_THE_FIELD * turned * self._squares * moved)
        # Functions of which nothing is seen stay where they are, all of them where the whole field is out of range.
        ridge = (_RIDGE * field.diagonal().mean()).clamp_min(torch.finfo(field.dtype).tiny)
        field += torch.diag(ridge + self._precision.field)
        coils = _gram(self._problem.coil_errors.functions.to(bright), _LEFT_TO_THE_COILS * strength.sum() * bright)
        return field, coils + torch.diag(self._precision.coils.to(bright))

    def _density_through_the_coils(self) -> Tensor:
        """About the diagonal of `F A^H A F^H`, `[y, x]`: each coil map spreads a point of k-space over those around it.

        In the centre, where the density changes within their spread, it is half of the density itself. Steps of 12
        iterations go a tenth further with it (benchmarks/RESULTS.md).
        """
        spread = fft_centred(self._maps, _AXES).abs().square().sum(0) / self._image.numel()
        # sum_m density(k + m) spread(m), by way of images.
        seen = fft_centred(ifft_centred(self._problem.density, _AXES) * ifft_centred(spread, _AXES).conj(), _AXES)
        strength: Tensor = seen.real.clamp_min(0) * self._image.numel() ** 0.5
        return strength

    def _terms(self, change: Change) -> Tensor:
        """What a change does to E^H E of each coil's samples but for the kernels, `[coil, term, y, x]`."""
        moved = self._slope * self._problem.basis.field(change.field)
        of_object = self._model.expand(self._problem.unit * change.image) + moved
        return self._maps[:, None] * of_object + self._problem.coil_errors.maps(change.coils)[:, None] * self._seen

    def _transposed(self, terms: Tensor) -> Change:
        """From images as those to all unknowns."""
        combined = (self._maps.conj()[:, None] * terms).sum(0)
        return Change(
            self._problem.unit * self._model.combine(combined),
            self._problem.basis.transpose((self._slope.conj() * combined).real.sum(0)),
            self._problem.coil_errors.transpose((self._seen.conj() * terms).sum(1)),
        )

    def _followed(self, change: Change) -> Change:
        """From what is left to the image to all of its change: subtracts what it does to follow field and maps."""
        field = self._filtered(self._follow, self._problem.basis.field(change.field) * self._moved)
        coils = (self._maps.conj() * self._problem.coil_errors.maps(change.coils)).sum(0) / self._squares
        return change._replace(image=change.image - field - coils * self._image)

    def _following(self, gradient: Change) -> Change:
        """The transpose of that."""
        back = self._moved.conj() * self._filtered(self._follow.conj(), gradient.image)
        coils = self._maps * (self._image.conj() * gradient.image / self._squares)
        return Change(
            gradient.image,
            gradient.field - self._problem.basis.transpose(back.real),
            gradient.coils - self._problem.coil_errors.transpose(coils),
        )

    def _solve(self, side: Change, iterations: int) -> Change:
        def normal(unknown: Tensor) -> Tensor:
            change = self._followed(self._unpacked(unknown))
            along = self._transposed(self._model.gram(self._terms(change)))
            return self._packed(
                self._following(
                    Change(
                        along.image + self._pull * self._not_followed(change.image),
                        along.field + self._precision.field * change.field,
                        along.coils + self._precision.coils * change.coils,
                    )
                )
            )

        rhs = self._packed(self._following(side))
        found = conjugate_gradient(normal, rhs, iterations=iterations, tolerance=_TOLERANCE)
        return self._followed(self._unpacked(found.image))

    def _packed(self, change: Change) -> Tensor:
        """All unknowns as one real vector, well conditioned."""
        image = self._filtered(self._whiten, change.image)
        field = solve_triangular(self._factors.field, change.field[:, None], upper=False)
        coils = solve_triangular(self._factors.coils.to(change.coils.dtype), change.coils.T, upper=False).T
        return torch.cat([_real(image), field.flatten(), _real(coils)])

    def _unpacked(self, unknown: Tensor) -> Change:
        pixels, functions = self._image.numel(), len(self._at.field)
        image, field, coils = torch.split(unknown, [2 * pixels, functions, 2 * self._at.coils.numel()])
        lower = self._factors.coils.to(self._at.coils.dtype)
        return Change(
            self._filtered(self._whiten, _complex(image, self._image.shape)),
            solve_triangular(self._factors.field.T, field[:, None], upper=True)[:, 0],
            solve_triangular(lower.T, _complex(coils, self._at.coils.shape).T, upper=True).T,
        )

    def _filtered(self, weights: Tensor, image: Tensor) -> Tensor:
        return ifft_centred(weights * fft_centred(image, _AXES), _AXES)


def _gram(functions: Tensor, weights: Tensor) -> Tensor:
    """sum over pixels of weights times all pairs of functions."""
    flat = functions.flatten(1)
    return (flat * weights.flatten()) @ flat.T


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x.contiguous()).flatten()


def _complex(parts: Tensor, shape: torch.Size) -> Tensor:
    return torch.view_as_complex(parts.reshape(*shape, 2).clone())
