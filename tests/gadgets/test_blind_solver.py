"""Image and field map in the stream, from a small spiral scan of a head whose field nobody tells, but for the tests."""

from __future__ import annotations

import math
from dataclasses import replace

import ismrmrd
import pytest
import torch
from torch import Tensor

from gadgets import blind_solver
from gadgets.blind_solver import BlindSolver
from gadgets.coil_maps import CoilMaps
from gadgets.frame import Frame, Samples, Space
from gadgets.image_export import SERIES, ImageExport
from pipelines.definition import DEFINITIONS, find_definition
from pipelines.image_series import field_of, kind_of, solver_report
from pipelines.registry import installed_gadgets
from recon_core.cache import ContentCache
from recon_core.field_basis import monomials
from recon_core.simulation import exact_signal, head

from analytic import complex_noise, positions, relative, ring_of_coils, spiral_trajectory
from phantom_scan import Phantom, cartesian
from phantom_scan import head as phantom_head
from scans import header, run, session

N, COILS, SHOTS, SAMPLES, FOV_MM = 32, 4, 4, 500, 210.0
TRAJECTORY = spiral_trajectory(N, SHOTS, SAMPLES, power=1.5)
TIMES = torch.linspace(0, 0.012, SAMPLES)
MAPS = ring_of_coils(N, COILS)
Y, X = torch.meshgrid(positions(N), positions(N), indexing="ij")
FIELD_HZ = 25 * (2 * X + 6 * (Y**2 - X**2) + 20 * X * Y**2 - 0.2)
"""Of 17 Hz root mean square within the head."""

MAGNITUDE, MASK = (part[0] for part in head((N, N), FOV_MM / N, [20.0], torch.Generator().manual_seed(0)))
IMAGE = 80 * MAGNITUDE * torch.exp(2j * math.pi * (0.3 * X + 0.5 * Y**2))


CACHE = ContentCache(2**28)
"""Most tests solve with the same kernels and prior."""


@pytest.fixture(scope="module")
def kspace() -> Tensor:
    """With noise of unit variance."""
    signal = exact_signal(IMAGE, MAPS, FIELD_HZ, TRAJECTORY.double(), TIMES.double())
    return (signal + complex_noise(*signal.shape, seed=1, dtype=signal.dtype)).to(torch.complex64)


def scanned(kspace: Tensor, field_hz: Tensor | None = None, late: float = 0.0) -> Frame:
    """A frame of the head with its true maps, and a field map if one is said to be known already."""
    space = Space((1, N, N), (5.0, FOV_MM, FOV_MM), (1, N, N), (5.0, FOV_MM, FOV_MM))
    times = (TIMES + late).repeat(SHOTS, 1)
    frame = Frame(Samples(kspace.clone(), TRAJECTORY), times, space, ismrmrd.AcquisitionHeader())
    frame.coil_maps = MAPS.to(torch.complex64)
    frame.field_map = None if field_hz is None else field_hz.float()
    return frame


def solved(*frames: Frame, opened=None, **properties):
    usual = {"prior": "head_unet", "samples": 1, "limit": 100.0}
    return run([BlindSolver(**usual | properties)], frames, opened or session(header(), cache=CACHE))


def kinds(results) -> list[str]:
    return [getattr(item, "kind", "frame") for item in results]


def rms_hz(field_hz: Tensor) -> float:
    return float(field_hz[MASK].square().mean().sqrt())


def field_error(frame: Frame) -> float:
    return rms_hz(frame.field_map - FIELD_HZ)


def image_error(image: Tensor) -> float:
    return relative((image.abs() - IMAGE.abs())[MASK], IMAGE.abs()[MASK])


def shorten(monkeypatch, steps: int) -> None:
    """So many steps in each stage, and three for the image, with fewer draws in each."""
    for name in ("coarse", "fine", "alone"):
        stage = getattr(blind_solver, name)
        monkeypatch.setattr(blind_solver, name, lambda problem, stage=stage: replace(stage(problem), steps=steps))
    for name, few in (("_IMAGE_STEPS", 3), ("_LOOKS", 2), ("_DRAWS", 2)):
        monkeypatch.setattr(f"recon_core.solvers.blind_gauss_newton.{name}", few)


@pytest.fixture
def short(monkeypatch) -> None:
    """Stages of two steps each."""
    shorten(monkeypatch, 2)


@pytest.fixture
def held(monkeypatch) -> None:
    """Stages of one step each, and these so short that the field stays where it begins."""
    shorten(monkeypatch, 1)
    monkeypatch.setattr("recon_core.solvers.blind_gauss_newton._LARGEST_STEP_HZ", 1e-3)


@pytest.fixture(scope="module")
def found(kspace):
    return solved(scanned(kspace), samples=2)


def test_image_and_field_are_those_of_the_scan(found, kspace):
    image, field_map, deviation, *_, frame = found
    assert rms_hz(FIELD_HZ) > 15
    assert rms_hz(field_map.data - FIELD_HZ) < 4
    assert image_error(image.data) < 0.1
    told = rms_hz(deviation.data)
    assert 0.25 < told / field_error(frame) < 4


def test_the_field_and_its_deviation_leave_after_the_image_and_before_the_frame(found):
    assert kinds(found) == ["image", "field_map", "field_deviation", "deviation", "frame"]
    *images, frame = found
    for item in images:
        assert item.frame is frame
        assert item.data.shape == (N, N)
        assert item.data.is_complex() == (item.kind == "image")
    assert float(found[2].data.min()) > 0


def test_later_gadgets_get_the_field(found):
    image, field_map, *_, frame = found
    assert torch.equal(frame.field_map, field_map.data)
    assert torch.equal(frame.image, image.data)


def test_the_history_tells_method_prior_limit_and_misfits(found):
    how, course = found[-1].history
    assert how.startswith(
        "BlindSolver: gauss_newton with head_unet, smooth fields within 100 Hz, 2 samples, 55 of 55 steps in "
    )
    low, high = (float(value) for value in found[1].data.aminmax())
    assert course.startswith(f"BlindSolver: field from {low:.0f} to {high:.0f} Hz; misfit per sample ")
    misfits = [float(value) for value in course.split("misfit per sample ")[1].replace("at last ", "").split(", ")]
    assert misfits[0] > 5 * misfits[-1]
    assert misfits[-1] == pytest.approx(1, abs=0.4)


def test_each_series_has_an_index_and_a_kind_of_its_own(kspace, short):
    opened = session(header(matrix=(N, N, 1), fov=(FOV_MM, FOV_MM, 5)), cache=CACHE)
    gadgets = [BlindSolver(prior="head_unet", samples=1), ImageExport()]
    images = [item for item in run(gadgets, [scanned(kspace)], opened) if isinstance(item, ismrmrd.Image)]
    expected = ["image", "field_map", "field_deviation"]
    assert [kind_of(image) for image in images] == [SERIES[kind].description for kind in expected]
    assert [image.image_series_index for image in images] == [1, 3, 6]
    assert solver_report(images[0])[0] == 7
    assert 1 < rms_hz(torch.from_numpy(field_of(images[1])[0])) < 40


def test_a_field_map_of_an_earlier_gadget_is_where_it_begins(kspace, held):
    """A smooth basis holds the true field to less than 1 Hz."""
    assert field_error(solved(scanned(kspace, FIELD_HZ))[-1]) < 1
    assert field_error(solved(scanned(kspace))[-1]) > 15


@pytest.mark.parametrize(
    ("field_hz", "message"),
    [
        (torch.where(MASK, FIELD_HZ, torch.nan), "the field map holds values that are not finite"),
        (FIELD_HZ[:20], r"expected a field map \[32, 32\] on the grid of the image, got \[20, 32\]"),
    ],
)
def test_a_field_map_that_cannot_be_used_is_refused(kspace, field_hz, message):
    with pytest.raises(ValueError, match=message):
        solved(scanned(kspace, field_hz))


@pytest.mark.parametrize(("method", "planned"), [("gauss_newton", 55), ("red_diff", 1000)])
def test_ends_when_the_time_is_over_and_says_so(kspace, method, planned):
    *_, frame = solved(scanned(kspace), method=method, time_budget=1e-9)
    how, course = frame.history
    assert f"1 of {planned} steps" in how
    assert "when the time budget was spent" in how
    assert "misfit per sample" in course
    assert torch.isfinite(frame.image.abs()).all()


def test_no_signal_gives_an_empty_image_and_no_field(kspace, short):
    """Nor that of the slice before."""
    silent = scanned(torch.zeros_like(kspace))
    opened = session(header())
    results = solved(scanned(kspace), silent, opened=opened, samples=2)
    assert kinds(results[5:]) == ["image", "deviation", "frame"]
    assert not results[5].data.any()
    assert silent.field_map is None
    assert silent.history == ["BlindSolver: all samples are zero, and so is the image"]


def test_samples_that_are_not_finite_are_counted(kspace):
    frame = scanned(kspace)
    frame.samples.kspace[0, 0, :3] = torch.nan
    with pytest.raises(ValueError, match=f"3 of {kspace.numel()} samples of k-space are not finite"):
        solved(frame)


def test_the_field_keeps_within_its_limit(kspace, held):
    low, high = solved(scanned(kspace, FIELD_HZ), limit=20.0)[-1].field_map.aminmax()
    assert (float(low), float(high)) == pytest.approx((-20, 20))


def test_an_echo_time_leaves_the_field_as_it_is(kspace, short):
    """Which of the image's phase was there at the excitation, nothing tells."""
    early, late = (solved(scanned(kspace, late=seconds))[-1].field_map for seconds in (0.0, 0.03))
    assert rms_hz(early) > 3
    assert rms_hz(late - early) < 0.02 * rms_hz(early)


def test_red_diff_finds_a_polynomial(kspace):
    results = solved(scanned(kspace), method="red_diff", steps=5, order=3)
    assert kinds(results) == ["image", "field_map", "frame"]
    *_, frame = results
    assert frame.history[0].startswith(
        "BlindSolver: red_diff with head_unet, polynomial fields of order 3 within 100 Hz, 1 sample, 5 of 5 steps"
    )
    columns, field = monomials(MASK, 3), frame.field_map[MASK].double()
    assert field.square().mean().sqrt() > 1
    assert relative(columns @ torch.linalg.lstsq(columns, field[:, None]).solution - field[:, None], field) < 1e-4


def test_polynomials_are_fitted_in_joint_steps_too(kspace, short):
    *_, frame = solved(scanned(kspace), fields="polynomial", order=2)
    assert "gauss_newton with head_unet, polynomial fields of order 2 within 100 Hz" in frame.history[0]
    columns, field = monomials(MASK, 2), frame.field_map[MASK].double()
    assert relative(columns @ torch.linalg.lstsq(columns, field[:, None]).solution - field[:, None], field) < 1e-4


def test_coil_maps_are_made_again_with_the_field_so_far(kspace, held, monkeypatch):
    """Those that it begins with tell no coil from another."""
    asked, estimated = [], CoilMaps.maps

    def remembered(self, frame):
        asked.append(field_error(frame))
        return estimated(self, frame)

    monkeypatch.setattr(CoilMaps, "maps", remembered)

    def error(recalibrations: int) -> float:
        frame = scanned(kspace, FIELD_HZ)
        frame.coil_maps = torch.full_like(frame.coil_maps, COILS**-0.5)
        return image_error(solved(frame, recalibrations=recalibrations)[-1].image)

    without = error(0)
    assert asked == []
    assert error(2) < 0.5 * without
    assert len(asked) == 2
    assert max(asked) < 1


def test_later_gadgets_get_the_coil_maps_that_were_made_again(kspace, held):
    frame = solved(scanned(kspace, FIELD_HZ), recalibrations=1)[-1]
    expected, how = CoilMaps().maps(scanned(kspace, frame.field_map))
    assert relative(frame.coil_maps - expected, expected) < 5e-3
    assert frame.history[-2] == f"BlindSolver: coil maps made again, {how}"
    assert "without their off-resonance" in how


def test_coil_maps_of_calibration_lines_stay(kspace, held):
    frame = scanned(kspace, FIELD_HZ)
    frame.calibration = Samples(kspace.clone(), TRAJECTORY)
    before = frame.coil_maps.clone()
    assert "coil maps stay as they are" in solved(frame, recalibrations=2)[-1].history[-2]
    assert torch.equal(frame.coil_maps, before)


def test_a_field_at_the_limit_is_told(kspace, held):
    opened = session(header(), cache=CACHE)
    solved(scanned(kspace, FIELD_HZ), opened=opened, limit=20.0)
    assert any("at the limit of 20 Hz" in told for told in opened.tell)
    opened = session(header(), cache=CACHE)
    solved(scanned(kspace, FIELD_HZ), opened=opened, limit=100.0)
    assert not any("limit" in told for told in opened.tell)


@pytest.mark.parametrize("coils", [1, 4])
def test_cartesian_lines_are_solved_on_one_grid(short, coils):
    """Their early samples lie anywhere but around the centre."""
    frame = Phantom.scanned(cartesian(), coils, 1.0, 50 * phantom_head()).frame(with_maps=True)
    frame.times = torch.linspace(0, 5e-4, frame.times.shape[1]).expand_as(frame.times)
    results = solved(frame, samples=2)
    assert kinds(results) == ["image", "field_map", "field_deviation", "deviation", "frame"]
    assert "5 of 5 steps" in frame.history[0]
    truth = torch.from_numpy(50 * phantom_head()).abs()
    assert relative(results[0].data.abs() - truth, truth) < 0.2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 5}, "steps is set, but has no effect with method gauss_newton"),
        ({"order": 3}, "order is set, but has no effect with fields smooth"),
        ({"method": "red_diff", "fields": "polynomial"}, "fields is set, but has no effect with method red_diff"),
        ({"method": "red_diff", "recalibrations": 1}, "recalibrations is set, but has no effect with method red_diff"),
    ],
)
def test_properties_without_effect_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        BlindSolver(**settings).open(session(header()))


@pytest.mark.parametrize("name", ["blind_red_diff", "blind_joint"])
def test_the_pipelines_are_made_of_gadgets_that_are_there(name):
    gadgets = find_definition(name, [DEFINITIONS]).build(installed_gadgets())
    names = [type(gadget).__name__ for gadget in gadgets]
    (blind,) = (gadget for gadget in gadgets if isinstance(gadget, BlindSolver))
    assert names.index("CoilMaps") < names.index("FieldMap") < names.index("BlindSolver")
    assert (blind.method, blind.prior, blind.samples) == ("gauss_newton", "head_unet_large", 4)
    assert bool(blind.recalibrations) == (name == "blind_joint")
