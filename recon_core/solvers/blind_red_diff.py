"""Blind RED-diff: image and field map in turns, as paper 000 has it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recon_core.field_basis import FieldBasis, monomials
from recon_core.priors.prior import Prior
from recon_core.solvers.blind_problem import BlindEstimate, BlindProblem
from recon_core.solvers.linear_problem import LinearProblem
from recon_core.solvers.red_diff import Spacing, prior_gradient, variance_preserving_levels
from recon_core.solvers.run import Estimate, Run

_LAPLACE_CENTRE, _LAPLACE_SCALE = 3.3, 95.1
_FIRST_ITERATIONS = 10
_FIRST_LEVEL = 1.0
_MISFITS = 50
_ALIKE = 1e-3


def blind_red_diff(
    problem: BlindProblem,
    prior: Prior,
    run: Run,
    *,
    steps: int = 1000,
    order: int = 5,
    weight: float = 4.0,
    field_weight: float = 2.0,
    rate: float = 0.1,
    field_rate: float = 1.0,
    highest: float = 160.0,
    ending: float = 0.0,
    spacing: Spacing = "time",
) -> BlindEstimate:
    """Blind RED-diff (paper 000, algorithm 1): the reference that `blind_gauss_newton` is measured against.

    For each of falling times, one step of Adam moves the image mu, with the gradient of `|unit A(psi) mu - y|^2` and
    of RED-diff's term for `x_t = alpha_t mu + sigma_t eps` (`red_diff`, with its weight relative to the noise). Then
    one step of Adam moves the field's polynomial, with the gradient of `|unit A(psi) mu - y|^2 + lambda R` and
    `R = sum_i |gamma_i - 3.3| / 95.1` over the coefficients gamma of the monomials. Neither step knows of the other,
    so that the image takes up much of what the field leaves.

    Read as misprints: equation 8 is the divergence of two Laplace densities, of each coefficient for itself, so that
    its logarithm has no factor and its exponent no norm of all coefficients; as the width of the first goes to zero, R
    is left. The variance under the misfit of equation 9 is that of the data's noise, as in equation 10.

    The paper does not state the coordinates (here -1 to 1 over the field of view, for which its Laplace density gives
    plausible fields in Hz), lambda, optimisers and their rates, or the start. Here Adam moves the field by its
    orthonormal coefficients, as those of monomials differ too much in what they do; both rates fall along a quarter of
    a cosine to 1 %; gamma starts at zero, and mu with 10 iterations of conjugate gradients without a field.

    Most of the paper's times lie at levels at which the prior knows only that images are near zero. While it draws mu
    there, the field is free to wander off, and may not come back. With `steps=300, highest=1, ending=0.25,
    spacing="level"`, even in their logarithm as `red_diff` has them, the field is found on the same scans.

    Args:
        problem: in the units of the prior, with the basis of `polynomial_basis`.
        prior: of the images; levels that it does not know are left out.
        run: what may be drawn and spent; one chain is run, whatever its samples.
        steps: of either.
        order: of the polynomials.
        weight: of the image's prior, as in `red_diff`.
        field_weight: lambda: `2 sigma_eta^2` of equation 10, for a noise of one.
        rate: of learning of the image, at first.
        field_rate: of the field's coefficients, in Hz.
        highest, ending, spacing: of the noise levels, as in `red_diff`; by default they are those of the paper.

    Returns:
        Without deviations, and with at most 50 misfits, evenly spaced.

    Raises:
        ValueError: the basis is not that of polynomials of the order, or the levels do not fall, or an unknown spacing.
    """
    monomial = monomial_coefficients(problem.basis, order)
    at = problem.start
    coefficients, given = at.field, problem.given(at)
    levels = variance_preserving_levels(prior, highest, ending * float(given.noise_level), steps, spacing)
    pull = weight / given.noise_level**2
    image = given.tempered(torch.zeros_like(given.adjoint)[None], _FIRST_LEVEL, None, _FIRST_ITERATIONS).clone()
    channels = torch.view_as_real(image)
    of_image, of_field = (
        torch.optim.Adam([what], first, betas=(0.9, 0.99))
        for what, first in ((channels, rate), (coefficients, field_rate))
    )
    done, misfits = 0, list[float]()
    for level in levels:
        if not run.go_on(done, steps):
            break
        slower = max(math.cos(math.pi * done / (2 * steps)), 0.01)
        of_image.param_groups[0]["lr"], of_field.param_groups[0]["lr"] = slower * rate, slower * field_rate
        gradient = given.gradient(image) + pull * prior_gradient(prior, image, level, run.generator)
        channels.grad = torch.view_as_real(gradient)
        of_image.step()
        penalty = field_weight * laplace_gradient(coefficients, monomial)
        coefficients.grad = misfit_gradient(problem, given, image[0]) + penalty
        of_field.step()
        given = problem.given(at)
        if done % math.ceil(steps / _MISFITS) == 0:
            misfits.append(float(given.misfit(image[0])) / problem.samples)
        done += 1
    estimate = Estimate.of(image, done, steps)
    return BlindEstimate(estimate, problem.unit, problem.field(coefficients), None, problem.coil_maps, misfits)


def misfit_gradient(problem: BlindProblem, given: LinearProblem, image: Tensor) -> Tensor:
    """Of `|unit A(B theta) x - y|^2` with respect to theta, per Hz: `[function]`, for x `[y, x]` and A at theta."""
    model, physical = given.model, problem.unit * image
    data_images = (model.coil_maps.conj()[:, None] * problem.data_images).sum(0)
    residual = model.residual_images(physical, data_images)
    return problem.basis.transpose(model.field_gradient(physical, residual))


def laplace_gradient(coefficients: Tensor, monomial: Tensor) -> Tensor:
    """Of R with respect to theta: `[function]`, for the matrix of `monomial_coefficients`."""
    return monomial.T @ (monomial @ coefficients - _LAPLACE_CENTRE).sign() / _LAPLACE_SCALE


def monomial_coefficients(basis: FieldBasis, order: int) -> Tensor:
    """The matrix from theta to gamma, `[monomial, function]`, so that `monomials @ gamma` is the field in the mask.

    Raises:
        ValueError: the basis is not that of polynomials of the order.
    """
    columns, functions = monomials(basis.mask, order), basis.functions[:, basis.mask].T.double()
    matrix: Tensor = torch.linalg.lstsq(columns, functions).solution
    if matrix.shape[0] != matrix.shape[1] or float((columns @ matrix - functions).abs().max()) > _ALIKE:
        raise ValueError(
            f"expected the {columns.shape[1]} functions of a basis of polynomials of order {order}, got "
            f"{functions.shape[1]} that are not"
        )
    return matrix.to(basis.functions.dtype)
