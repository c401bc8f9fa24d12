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


def several_systems() -> tuple[torch.Tensor, torch.Tensor]:
    """Matrices `[3, n, n]` of different condition, and right-hand sides `[2, 3, n]` of different size."""
    matrices = torch.stack([positive_matrix(12, smallest) for smallest in (0.01, 0.3, 10)])
    sizes = torch.tensor([[1.0, 1e3, 1e-3], [1e-3, 1, 1e3]])
    return matrices, sizes[..., None] * complex_noise(2, 3, 12, seed=1, dtype=torch.complex128)


def test_several_systems_know_nothing_of_one_another():
    matrices, rhs = several_systems()

    def normal(x):
        return torch.einsum("sij,...sj->...si", matrices, x)

    together = conjugate_gradient(normal, rhs, iterations=4, tolerance=1e-12, system_axes=1)
    alone = [
        [conjugate_gradient(times(m), b, iterations=4, tolerance=1e-12) for m, b in zip(matrices, row, strict=True)]
        for row in rhs
    ]
    truth = torch.stack([torch.stack([one.image for one in row]) for row in alone])
    torch.testing.assert_close(together.image, truth, rtol=1e-9, atol=1e-12)
    assert together.residuals[-1] == pytest.approx(max(one.residuals[-1] for row in alone for one in row))
    solved = conjugate_gradient(normal, rhs, iterations=300, tolerance=1e-11, system_axes=1).image
    truth = torch.linalg.solve(matrices.expand(2, 3, 12, 12), rhs[..., None])[..., 0]
    for found, exact in zip(solved.flatten(0, 1), truth.flatten(0, 1), strict=True):
        assert relative(found - exact, exact) < 1e-8


def test_a_system_that_is_solved_rests_while_others_move():
    matrices, rhs = several_systems()
    truth = torch.linalg.solve(matrices.expand(2, 3, 12, 12), rhs[..., None])[..., 0]
    start = torch.zeros_like(truth)
    start[0, 1] = truth[0, 1]
    found = conjugate_gradient(
        lambda x: torch.einsum("sij,...sj->...si", matrices, x),
        rhs,
        start,
        iterations=300,
        tolerance=1e-11,
        system_axes=1,
    ).image
    assert torch.equal(found[0, 1], truth[0, 1])
    assert relative(found[1, 2] - truth[1, 2], truth[1, 2]) < 1e-8


@pytest.mark.parametrize("from_start", [False, True])
def test_zero_right_hand_side_among_others(from_start):
    matrices, rhs = several_systems()
    rhs[0, 0] = 0
    start = torch.ones_like(rhs) if from_start else None
    found = conjugate_gradient(
        lambda x: torch.einsum("sij,...sj->...si", matrices, x),
        rhs,
        start,
        iterations=300,
        tolerance=1e-11,
        system_axes=1,
    ).image
    truth = torch.linalg.solve(matrices.expand(2, 3, 12, 12), rhs[..., None])[..., 0]
    assert torch.linalg.vector_norm(found[0, 0]) < 1e-8
    assert relative(found[1, 1] - truth[1, 1], truth[1, 1]) < 1e-8
    if not from_start:
        assert found[0, 0].abs().max() == 0


def test_one_operator_of_several_that_is_not_positive():
    signs = torch.tensor([1.0, -1.0, 1.0])[:, None]
    with pytest.raises(ArithmeticError, match="expected a positive operator, met the curvature -"):
        conjugate_gradient(lambda x: signs * x, torch.ones(3, 4), iterations=5, tolerance=0, system_axes=1)
