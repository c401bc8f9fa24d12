"""Solvers compute on a GPU what they compute on the CPU, up to rounding and their random draws."""

from __future__ import annotations

from dataclasses import replace

import ismrmrd
import pytest
import torch

from gadgets.blind_solver import BlindSolver
from gadgets.cg_sense import CgSense
from gadgets.coil_maps import CoilMaps
from gadgets.diffusion_solver import DiffusionSolver
from gadgets.frame import Frame, Samples, SeriesImage, Space
from gadgets.joint_solver import JointSolver
from gadgets.preview import Preview
from gadgets.total_variation import TotalVariation
from recon_core.simulation import exact_signal, head

from analytic import complex_noise, positions, relative, ring_of_coils, spiral_trajectory
from scans import header, run, session

DEVICE = torch.device("cuda")
N, COILS, SHOTS, SAMPLES, FOV_MM = 32, 4, 4, 500, 210.0
SMALL = {"prior": "head_unet", "samples": 2}
BLIND = {**SMALL, "limit": 100.0}
SOLVERS = {
    "preview": Preview(),
    "least squares": CgSense(),
    "total variation": TotalVariation(),
    "decomposed diffusion": DiffusionSolver(**SMALL),
    "red_diff": DiffusionSolver(**SMALL, method="red_diff"),
    "score_langevin": DiffusionSolver(**SMALL, method="score_langevin", steps=20),
    "pseudo_inverse_langevin": DiffusionSolver(**SMALL, method="pseudo_inverse_langevin", steps=20),
    "preconditioned_langevin": DiffusionSolver(**SMALL, method="preconditioned_langevin", steps=20),
    "csgm_langevin": DiffusionSolver(**SMALL, method="csgm_langevin", steps=100),
    "joint, PoGMDM": JointSolver(samples=2),
    "joint, U-Net": JointSolver(**SMALL),
    "blind": BlindSolver(**BLIND),
    "blind, and coils": BlindSolver(**BLIND, refine_coil_maps=True),
    "blind, polynomials": BlindSolver(**BLIND, fields="polynomial", seek_shim=True),
    "blind RED-diff": BlindSolver(prior="head_unet", limit=100.0, method="red_diff", steps=20),
}

EXPECTED = {"preview": {"preview"}} | {name: {"image", "field_map"} for name in SOLVERS if name.startswith("blind")}
"""Kinds of series that there must be: a field that was not believed would hide that none was sought."""

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(scope="module")
def frame() -> Frame:
    """A spiral scan of a head in a field of up to 40 Hz, with noise of unit variance and true maps."""
    y, x = torch.meshgrid(positions(N), positions(N), indexing="ij")
    image = 80 * head((N, N), FOV_MM / N, [20.0], torch.Generator().manual_seed(0))[0][0] * torch.exp(2j * y**2)
    trajectory, times = spiral_trajectory(N, SHOTS, SAMPLES, power=1.5), torch.linspace(0, 0.012, SAMPLES)
    maps, field_hz = ring_of_coils(N, COILS), 40 * (2 * x + 4 * (y**2 - x**2))
    signal = exact_signal(image, maps, field_hz, trajectory.double(), times.double())
    kspace = (signal + complex_noise(*signal.shape, dtype=signal.dtype)).to(torch.complex64)
    space = Space((1, N, N), (5.0, FOV_MM, FOV_MM), (1, N, N), (5.0, FOV_MM, FOV_MM))
    samples = Samples(kspace, trajectory)
    scanned = Frame(samples, times.repeat(SHOTS, 1), space, ismrmrd.AcquisitionHeader())
    return replace(scanned, coil_maps=maps.to(torch.complex64))


def solved(solver, frame: Frame, device: torch.device) -> dict[str, torch.Tensor]:
    """The series by kind, of coil maps the last."""
    results = run([solver], [replace(frame.on(device), history=[])], session(header(), device=device))
    return {item.kind: item.data for item in results if isinstance(item, SeriesImage)}


@pytest.mark.parametrize("name", SOLVERS)
def test_the_series_are_those_of_the_cpu(name, frame):
    here, there = (solved(SOLVERS[name], frame, device) for device in (torch.device("cpu"), DEVICE))
    assert there.keys() == here.keys() >= EXPECTED.get(name, {"image"})
    assert all(data.device.type == DEVICE.type for data in there.values())
    for kind in here.keys() & {"preview", "image", "field_map"}:
        assert relative(there[kind].cpu().abs() - here[kind].abs(), here[kind]) < 0.1


def test_coil_maps_are_those_of_the_cpu(frame):
    unknown = replace(frame, coil_maps=None)
    here, there = (
        run([CoilMaps()], [unknown.on(device)], session(header(), device=device))[0].coil_maps
        for device in (torch.device("cpu"), DEVICE)
    )
    assert there.device.type == DEVICE.type
    assert relative(there.cpu() - here, here) < 0.05
