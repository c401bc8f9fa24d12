"""The exact signal against sums written out by hand, in double precision."""

import cmath
import math

import pytest
import torch

from recon_core.simulation import exact_signal, signal
from recon_core.trajectories import cartesian_lines


def scene(ny=5, nx=6, coils=3, shots=2, samples=7, dtype=torch.complex128, seed=0):
    g = torch.Generator().manual_seed(seed)
    real = dtype.to_real()
    return {
        "image": torch.randn(ny, nx, generator=g, dtype=dtype),
        "coil_maps": torch.randn(coils, ny, nx, generator=g, dtype=dtype),
        "field_hz": 100 * torch.randn(ny, nx, generator=g, dtype=real),
        "trajectory": 6 * torch.rand(2, shots, samples, generator=g, dtype=torch.float64) - 3,
        "times": 0.02 * torch.rand(samples, generator=g, dtype=torch.float64),
    }


def by_hand(image, coil_maps, field_hz, trajectory, times) -> torch.Tensor:
    coils, ny, nx = coil_maps.shape
    _, shots, samples = trajectory.shape
    signal = torch.zeros(coils, shots, samples, dtype=torch.complex128)
    for c in range(coils):
        for s in range(shots):
            for n in range(samples):
                for y in range(ny):
                    for x in range(nx):
                        ky, kx = trajectory[:, s, n].tolist()
                        cycles = ky * (y - ny // 2) / ny + kx * (x - nx // 2) / nx
                        cycles += float(field_hz[y, x]) * float(times[n])
                        weight = complex(image[y, x]) * complex(coil_maps[c, y, x])
                        signal[c, s, n] += weight * cmath.exp(-2j * math.pi * cycles)
    return signal / math.sqrt(ny * nx)


@pytest.mark.parametrize("chunk", [1, 100, 2**20])
def test_signal_with_a_field_is_the_sum_over_pixels(chunk, monkeypatch):
    monkeypatch.setattr(signal, "_CHUNK", chunk)
    inputs = scene()
    torch.testing.assert_close(exact_signal(**inputs), by_hand(**inputs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 100, 2**20])
def test_signal_without_a_field_is_the_sum_over_pixels(chunk, monkeypatch):
    monkeypatch.setattr(signal, "_CHUNK", chunk)
    inputs = scene(ny=6, nx=5)
    expected = by_hand(**{**inputs, "field_hz": torch.zeros(6, 5)})
    torch.testing.assert_close(exact_signal(**{**inputs, "field_hz": None}), expected, rtol=1e-12, atol=1e-12)


def test_single_precision_is_as_good_as_it_can_be():
    inputs = scene(ny=64, nx=48, samples=50)
    inputs["trajectory"] *= 10
    single = {k: v.to(torch.complex64) if v.is_complex() else v for k, v in inputs.items()}
    single["field_hz"] = inputs["field_hz"].float()
    error = exact_signal(**single) - exact_signal(**inputs)
    assert error.dtype == torch.complex128
    assert error.norm() < 1e-6 * exact_signal(**inputs).norm()
    assert exact_signal(**single).dtype == torch.complex64


def test_on_a_full_cartesian_grid_it_is_the_orthonormal_fft():
    inputs = scene(ny=12, nx=9, coils=2)
    lines = cartesian_lines((torch.arange(12) - 6)[None], samples=9, centre_sample=4)
    found = exact_signal(inputs["image"], inputs["coil_maps"], None, lines, torch.zeros(9))
    weighted = torch.fft.ifftshift(inputs["coil_maps"] * inputs["image"], dim=(-2, -1))
    expected = torch.fft.fftshift(torch.fft.fft2(weighted, norm="ortho"), dim=(-2, -1))
    torch.testing.assert_close(found, expected)


def test_a_constant_field_turns_the_signal_clockwise():
    inputs = scene()
    still = exact_signal(**{**inputs, "field_hz": None})
    moved = exact_signal(**{**inputs, "field_hz": torch.full((5, 6), 30.0, dtype=torch.float64)})
    torch.testing.assert_close(moved, still * torch.exp(-2j * math.pi * 30 * inputs["times"]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image": torch.ones(5, 6)}, r"complex image \[y, x\], got torch.float32"),
        ({"coil_maps": torch.ones(3, 6, 5)}, r"coil maps \[coil, 5, 6\], got \(3, 6, 5\)"),
        ({"field_hz": torch.ones(5, 5)}, r"field map \(5, 6\), got \(5, 5\)"),
        ({"trajectory": torch.ones(3, 2, 7)}, r"trajectory \[2, shot, sample\], got \(3, 2, 7\)"),
        ({"times": torch.ones(8)}, r"times \[7\], one per sample of a shot, got \(8,\)"),
    ],
)
def test_shapes_that_do_not_go_together_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        exact_signal(**{**scene(), **wrong})
