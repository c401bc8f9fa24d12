import math

import pytest
import torch

from recon_core.solvers.conjugate_gradient import conjugate_gradient

from analytic import complex_noise, relative


def positive_matrix(n: int, smallest: float = 0.1) -> torch.Tensor:
    factor = complex_noise(n, n, dtype=torch.complex128)
    return factor @ factor.mH / n + smallest * torch.eye(n)


def times(matrix):
    return lambda x: (matrix @ x.flatten()).view_as(x)


def test_agrees_with_the_dense_solution():
    matrix, rhs = positive_matrix(30), complex_noise(5, 6, seed=1, dtype=torch.complex128)
    result = conjugate_gradient(times(matrix), rhs, iterations=200, tolerance=1e-12)
    truth = torch.linalg.solve(matrix, rhs.flatten()).view(5, 6)
    assert relative(result.image - truth, truth) < 1e-10


def test_ends_after_as_many_steps_as_eigenvalues():
    matrix = torch.diag(torch.tensor([1.0, 1, 1, 4, 4, 9, 9, 9]).to(torch.complex128))
    result = conjugate_gradient(times(matrix), complex_noise(8, dtype=torch.complex128), iterations=50, tolerance=1e-10)
    assert len(result.residuals) == 4
    assert result.residuals[0] == 1


def test_residuals_are_those_of_the_images():
    matrix, rhs = positive_matrix(12), complex_noise(12, seed=1, dtype=torch.complex128)
    images = []
    result = conjugate_gradient(
        times(matrix), rhs, iterations=5, tolerance=0, on_iteration=lambda i, x: images.append((i, x))
    )
    assert [i for i, _ in images] == [1, 2, 3, 4, 5]
    truth = [relative(rhs - matrix @ image, rhs) for _, image in images]
    assert result.residuals == pytest.approx([1, *truth])


def test_stops_at_the_tolerance():
    matrix, rhs = positive_matrix(30), complex_noise(30, seed=1, dtype=torch.complex128)
    result = conjugate_gradient(times(matrix), rhs, iterations=200, tolerance=1e-3)
    assert result.residuals[-1] <= 1e-3 < result.residuals[-2]


def test_starts_from_an_image():
    matrix, rhs = positive_matrix(10), complex_noise(10, seed=1, dtype=torch.complex128)
    truth = torch.linalg.solve(matrix, rhs)
    result = conjugate_gradient(times(matrix), rhs, start=truth, iterations=10, tolerance=1e-8)
    assert len(result.residuals) == 1
    torch.testing.assert_close(result.image, truth)
    start = complex_noise(10, seed=2, dtype=torch.complex128)
    kept = start.clone()
    result = conjugate_gradient(times(matrix), rhs, start=start, iterations=50, tolerance=1e-12)
    torch.testing.assert_close(result.image, truth)
    torch.testing.assert_close(start, kept)


def test_zero_has_the_solution_zero():
    result = conjugate_gradient(times(positive_matrix(4)), torch.zeros(4), iterations=5, tolerance=1e-3)
    assert result.image.abs().max() == 0
    assert result.residuals == [0.0]


def test_single_precision_comes_to_rest_at_rounding():
    matrix, rhs = positive_matrix(20, smallest=1e-2).to(torch.complex64), complex_noise(20, seed=1)
    result = conjugate_gradient(times(matrix), rhs, iterations=1000, tolerance=0)
    assert len(result.residuals) < 100
    assert relative(matrix @ result.image - rhs, rhs) < 1e-4


def test_singular_but_consistent():
    matrix = positive_matrix(12, smallest=0)
    matrix = matrix[:, :6] @ torch.linalg.solve(matrix[:6, :6], matrix[:6])
    rhs = matrix @ complex_noise(12, seed=1, dtype=torch.complex128)
    result = conjugate_gradient(times(matrix), rhs, iterations=100, tolerance=1e-9)
    assert relative(matrix @ result.image - rhs, rhs) < 1e-8


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_right_hand_side_and_start_must_be_finite(value):
    bad, good = torch.full((4,), value), torch.ones(4)
    with pytest.raises(ValueError, match="not finite"):
        conjugate_gradient(times(torch.eye(4)), bad, iterations=5, tolerance=0)
    with pytest.raises(ValueError, match="not finite"):
        conjugate_gradient(times(torch.eye(4)), good, start=bad, iterations=5, tolerance=0)


def test_operator_that_gives_nan():
    with pytest.raises(ArithmeticError, match="not finite"):
        conjugate_gradient(lambda x: x * math.nan, torch.ones(4), iterations=5, tolerance=0)


@pytest.mark.parametrize("matrix", [torch.diag(torch.tensor([1.0, -2, 1, 1])), -torch.eye(4), torch.zeros(4, 4)])
def test_operator_that_is_not_positive(matrix):
    with pytest.raises(ArithmeticError, match="expected a positive operator"):
        conjugate_gradient(times(matrix), torch.tensor([1.0, 2, 1, 1]), iterations=5, tolerance=0)


def test_operator_that_is_not_hermitian_does_not_pass_in_silence():
    skew = torch.eye(6) + 30 * torch.triu(torch.ones(6, 6), 1) - 30 * torch.tril(torch.ones(6, 6), -1)
    with pytest.raises(ArithmeticError, match="Hermitian"):
        conjugate_gradient(times(skew), torch.arange(6.0), iterations=500, tolerance=1e-6)
