import pytest
import torch

from recon_core.calibration.compression import compression_matrix

from analytic import complex_noise


def data_with_energies(*energies: float) -> torch.Tensor:
    """Coil data whose singular values squared are known: `[coil, 5, 8]`."""
    coils = len(energies)
    left, _ = torch.linalg.qr(complex_noise(coils, coils, seed=1, dtype=torch.complex128))
    right, _ = torch.linalg.qr(complex_noise(40, coils, seed=2, dtype=torch.complex128))
    return (left * torch.tensor(energies).sqrt() @ right.mH).reshape(coils, 5, 8).to(torch.complex64)


@pytest.mark.parametrize(
    ("energy", "count"), [(0.5, 1), (0.59, 1), (0.61, 2), (0.89, 2), (0.91, 3), (0.991, 4), (1.0, 4)]
)
def test_fewest_coils_that_keep_the_energy(energy, count):
    data = data_with_energies(6.0, 3.0, 0.9, 0.1)
    matrix = compression_matrix(data, energy)
    assert matrix.shape == (count, 4)
    kept = torch.tensordot(matrix, data, 1).abs().square().flatten(1).sum(1)
    torch.testing.assert_close(kept, torch.tensor([6.0, 3.0, 0.9, 0.1])[:count], rtol=1e-4, atol=0)


def test_rows_are_orthonormal_so_that_unit_noise_stays_unit():
    matrix = compression_matrix(data_with_energies(6.0, 3.0, 0.9, 0.1), 1.0)
    assert matrix.dtype == torch.complex64
    torch.testing.assert_close(matrix @ matrix.mH, torch.eye(4, dtype=torch.complex64), atol=1e-6, rtol=0)


def test_a_limit_goes_before_the_energy():
    assert len(compression_matrix(data_with_energies(1.0, 1.0, 1.0), 0.99, max_coils=2)) == 2
    assert len(compression_matrix(data_with_energies(1.0, 1.0, 1.0), 0.99, max_coils=7)) == 3


@pytest.mark.parametrize("energy", [0.0, -0.1, 1.1, float("nan")])
def test_energy_out_of_range(energy):
    with pytest.raises(ValueError, match="energy fraction above 0 and up to 1"):
        compression_matrix(complex_noise(2, 9), energy)


def test_data_and_limits_that_cannot_be():
    with pytest.raises(ValueError, match="zero or not finite"):
        compression_matrix(torch.zeros(2, 9, dtype=torch.complex64), 0.9)
    with pytest.raises(ValueError, match="zero or not finite"):
        compression_matrix(torch.full((2, 9), torch.nan, dtype=torch.complex64), 0.9)
    with pytest.raises(ValueError, match="at least one virtual coil, got 0"):
        compression_matrix(complex_noise(2, 9), 0.9, max_coils=0)
