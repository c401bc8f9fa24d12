"""Bases of field maps against polynomials written out, and against the Gaussian process over all pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recon_core.field_basis import MEASURED_HEADS, monomials, polynomial_basis, smooth_basis

FOV_MM = (160.0, 126.0)


def grid(shape) -> tuple[np.ndarray, np.ndarray]:
    return np.meshgrid(*(np.arange(n) - n // 2 for n in shape), indexing="ij")


def head(shape=(40, 36)) -> torch.Tensor:
    """An ellipse off the centre, with a bay."""
    y, x = grid(shape)
    inside = np.hypot((y - 1) / (0.45 * shape[0]), (x + 2) / (0.4 * shape[1])) < 1
    return torch.from_numpy(inside & (np.hypot(y - 0.3 * shape[0], x) > 4))


def covariance(mask: torch.Tensor) -> np.ndarray:
    """Of the field at all pixels of the mask, `[pixel, pixel]`, as it is defined."""
    y, x = (c[mask.numpy()] * fov / n for c, fov, n in zip(grid(mask.shape), FOV_MM, mask.shape, strict=True))
    square = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2
    return sum(deviation**2 * np.exp(-square / (2 * length**2)) for deviation, length in MEASURED_HEADS)


def draws(mask: torch.Tensor, count: int) -> torch.Tensor:
    """Of the process, `[draw, y, x]`; zero outside the mask."""
    dense = covariance(mask)
    root = np.linalg.cholesky(dense + 1e-6 * np.eye(len(dense)))
    fields = torch.zeros(count, *mask.shape)
    fields[:, mask] = torch.from_numpy(np.random.default_rng(1).standard_normal((count, len(dense))) @ root.T).float()
    return fields


def polynomial(shape, order: int) -> torch.Tensor:
    """With random coefficients, in fields of view."""
    return polynomial_at([c / n for c, n in zip(grid(shape), shape, strict=True)], order)


def polynomial_at(coordinates, order: int) -> torch.Tensor:
    y, x = coordinates
    rng = np.random.default_rng(2)
    terms = [rng.normal(0, 50 * 3 ** (p + q)) * y**p * x**q for p in range(order + 1) for q in range(order + 1 - p)]
    return torch.from_numpy(sum(terms)).float()


def mean_square(fields: torch.Tensor, mask: torch.Tensor) -> float:
    return float(fields[..., mask].square().mean())


@pytest.fixture(scope="module", params=["polynomial", "smooth"])
def basis(request):
    return polynomial_basis(head(), 5) if request.param == "polynomial" else smooth_basis(head(), FOV_MM)


@pytest.fixture(scope="module")
def smooth():
    return smooth_basis(head(), FOV_MM)


def test_functions_are_orthonormal_over_the_mask(basis):
    inside = basis.functions[:, basis.mask].double()
    torch.testing.assert_close(inside @ inside.T / inside.shape[1], torch.eye(len(inside)).double(), atol=1e-5, rtol=0)


def test_a_fit_finds_the_coefficients_of_a_sum(basis):
    coefficients = torch.randn(3, 2, len(basis.functions), generator=torch.Generator().manual_seed(3))
    fields = basis.field(coefficients)
    torch.testing.assert_close(basis.fit(fields), coefficients, atol=1e-4, rtol=0)
    np.testing.assert_allclose(mean_square(fields[0, 0], basis.mask), coefficients[0, 0].square().sum(), rtol=1e-4)


def test_a_fit_ignores_what_is_outside_the_mask(basis):
    field = basis.functions[1]
    torch.testing.assert_close(basis.fit(torch.where(basis.mask, field, torch.full_like(field, 1e4))), basis.fit(field))


def test_transpose_is_the_adjoint_of_field(basis):
    generator = torch.Generator().manual_seed(4)
    coefficients = torch.randn(3, 2, len(basis.functions), generator=generator)
    images = torch.randn(3, 2, *basis.mask.shape, generator=generator)
    left, right = basis.field(coefficients), basis.transpose(images)
    assert left.shape == images.shape
    assert right.shape == coefficients.shape
    np.testing.assert_allclose((left * images).sum((-2, -1)), (coefficients * right).sum(-1), rtol=1e-3)


def test_any_polynomial_of_the_order_is_a_sum_and_others_are_not():
    mask = head()
    basis = polynomial_basis(mask, 5)
    inside, beyond = polynomial(mask.shape, 5), polynomial(mask.shape, 6)
    assert len(basis.functions) == 21
    found = basis.field(basis.fit(inside))
    torch.testing.assert_close(found[mask], inside[mask], atol=1e-3, rtol=0)
    assert not found[~mask].any()
    assert mean_square(basis.field(basis.fit(beyond)) - beyond, mask) > 0.1


def test_nothing_is_known_of_a_polynomial_beforehand():
    assert not polynomial_basis(head(), 2).precision.any()


@pytest.mark.parametrize("shape", [(40, 36), (35, 21)])
def test_a_field_has_the_same_monomials_on_a_grid_twice_as_fine(shape):
    """Of which every second pixel lies on the coarse one, counted from the centre."""
    coarse, fine = (torch.ones(n, m, dtype=torch.bool) for n, m in (shape, [2 * n for n in shape]))
    fields = monomials(fine, 3).reshape(*fine.shape, -1)
    first = [n % 2 for n in shape]
    torch.testing.assert_close(fields[first[0] :: 2, first[1] :: 2].flatten(0, 1), monomials(coarse, 3))


@pytest.mark.parametrize("shape", [(40, 36), (41, 37), (38, 42), (39, 35)])
def test_halved_functions_are_the_same_on_larger_pixels(shape):
    """The one in the centre stays there, and all others lie two of the smaller ones apart."""
    basis = polynomial_basis(head(shape), 3)
    half = basis.halved
    expected = polynomial_at([2 * c / n for c, n in zip(grid(half.mask.shape), shape, strict=True)], 3)
    found = half.field(basis.fit(polynomial(shape, 3)))
    torch.testing.assert_close(found[half.mask], expected[half.mask], atol=0.01, rtol=1e-4)
    assert torch.equal(half.deviation_hz, basis.deviation_hz)


def test_coefficients_of_the_process_are_independent_and_as_large_as_stated(smooth):
    """Their covariance is B C B^T / n^2, with C that of the field at all pixels."""
    inside = smooth.functions[:, smooth.mask].double().numpy()
    of_coefficients = inside @ covariance(smooth.mask) @ inside.T / inside.shape[1] ** 2
    stated = smooth.deviation_hz.numpy()
    np.testing.assert_allclose(of_coefficients / np.outer(stated, stated), np.eye(len(stated)), atol=0.03)


def test_coefficients_of_draws_are_as_large_as_stated(smooth):
    found = smooth.fit(draws(smooth.mask, 1000))
    np.testing.assert_allclose(found.square().mean(0).sqrt(), smooth.deviation_hz, rtol=0.12)  # 5 sigma of 2.2 %


def test_draws_are_sums_but_for_the_variance_that_is_left_out(smooth):
    fields = draws(smooth.mask, 200)
    variance = sum(deviation**2 for deviation, _ in MEASURED_HEADS)
    left_out = variance - float(smooth.deviation_hz.double().square().sum())
    assert 0 < left_out < 3e-4 * variance
    residual = mean_square(smooth.field(smooth.fit(fields)) - fields, smooth.mask)
    np.testing.assert_allclose(residual, left_out, rtol=0.1)


def test_no_other_functions_as_many_hold_more_of_the_variance(smooth):
    largest = np.linalg.eigvalsh(covariance(smooth.mask) / int(smooth.mask.sum()))[::-1]
    kept = smooth.deviation_hz.numpy() ** 2
    np.testing.assert_allclose(kept, largest[: len(kept)], rtol=0.03)
    assert largest[len(kept)] < 0.1  # 0.3 Hz


def test_functions_go_on_smoothly_across_the_edge(smooth):
    """Bay and rim are as smooth as the inside: a step to the next pixel is no larger."""
    fields = smooth.functions[:10]
    near = torch.nn.functional.max_pool2d(smooth.mask[None, None].float(), 5, 1, 2)[0, 0].bool()
    for axis in (1, 2):
        steps = fields.diff(dim=axis).abs()
        within, there = (m.narrow(axis - 1, 1, m.shape[axis - 1] - 1) for m in (smooth.mask, near))
        assert (steps[:, there].amax(1) < 2 * steps[:, within].amax(1)).all()


@pytest.mark.parametrize("shape", [(64, 16), (15, 48)])
def test_pixels_need_not_be_square_nor_the_mask(shape):
    """Coarser than the points along one axis, finer along the other."""
    mask = torch.ones(shape, dtype=torch.bool)
    basis = smooth_basis(mask, FOV_MM)
    fields = draws(mask, 100)
    assert basis.functions.shape[1:] == shape
    assert mean_square(basis.field(basis.fit(fields)) - fields, mask) < 6
    np.testing.assert_allclose(
        basis.deviation_hz.numpy() ** 2,
        np.linalg.eigvalsh(covariance(mask) / mask.numel())[::-1][: len(basis.functions)],
        rtol=0.1,
    )


def test_two_islands_have_one_field():
    mask = torch.zeros(40, 36, dtype=torch.bool)
    mask[4:12, 5:30] = mask[25:36, 8:20] = True
    basis = smooth_basis(mask, FOV_MM)
    fields = draws(mask, 50)
    assert mean_square(basis.field(basis.fit(fields)) - fields, mask) < 5


def test_results_are_in_single_precision(basis):
    assert basis.functions.dtype == basis.deviation_hz.dtype == basis.fit(basis.functions).dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.parametrize("make", [lambda mask: polynomial_basis(mask, 5), lambda mask: smooth_basis(mask, FOV_MM)])
def test_bases_are_made_where_the_mask_is(make):
    here, there = make(head()), make(head().cuda())
    assert there.functions.device.type == there.deviation_hz.device.type == "cuda"
    torch.testing.assert_close(there.deviation_hz.cpu(), here.deviation_hz, rtol=1e-3, atol=0)
    field = here.functions[:3].sum(0)
    torch.testing.assert_close(there.field(there.fit(field.cuda())).cpu(), field, rtol=0, atol=1e-2)


def one_row() -> torch.Tensor:
    mask = torch.zeros(40, 36, dtype=torch.bool)
    mask[20] = True
    return mask


@pytest.mark.parametrize("make", [lambda mask: polynomial_basis(mask, 5), lambda mask: smooth_basis(mask, FOV_MM)])
def test_bad_masks_are_refused(make):
    with pytest.raises(ValueError, match=r"at least \d+ pixels to estimate a field in, got 0"):
        make(torch.zeros(40, 36, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"at least \d+ pixels to estimate a field in, got 4"):
        make(torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"mask bool \[y, x\], got torch.float32 \(40, 36\)"):
        make(torch.ones(40, 36))
    with pytest.raises(ValueError, match=r"mask bool \[y, x\], got torch.bool \(1, 40, 36\)"):
        make(torch.ones(1, 40, 36, dtype=torch.bool))


def test_a_mask_that_cannot_tell_polynomials_apart_is_refused():
    with pytest.raises(ValueError, match="more than 5 pixels wide and high"):
        polynomial_basis(one_row(), 5)


@pytest.mark.parametrize("fov", [(160.0,), (160.0, 0.0), (1.0, 2.0, 3.0)])
def test_a_bad_field_of_view_is_refused(fov):
    with pytest.raises(ValueError, match="field of view of two lengths in mm"):
        smooth_basis(head(), fov)


@pytest.mark.parametrize("scales", [[], [(100.0, 0.0)], [(-1.0, 15.0)]])
def test_bad_scales_are_refused(scales):
    with pytest.raises(ValueError, match="positive deviations and lengths"):
        smooth_basis(head(), FOV_MM, scales)


def test_fields_too_small_to_be_worth_a_function_are_refused():
    with pytest.raises(ValueError, match=r"more than 0.3 Hz, got deviations and lengths \[\(0.1, 60.0\)\]"):
        smooth_basis(head(), FOV_MM, [(0.1, 60.0)])
