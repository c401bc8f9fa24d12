"""Image and field map in the stream, from a small spiral scan of a head whose field nobody tells, but for the tests."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from functools import partial

import ismrmrd
import pytest
import torch
from torch import Tensor

from gadgets import blind_solver
from gadgets.blind_solver import BlindSolver
from gadgets.frame import Frame, Samples, Space
from gadgets.image_export import SERIES, ImageExport
from pipelines.definition import DEFINITIONS, find_definition
from pipelines.image_series import field_of, kind_of, solver_report
from pipelines.registry import installed_gadgets
from recon_core.cache import ContentCache
from recon_core.field_basis import monomials
from recon_core.simulation import exact_signal, head
from recon_core.solvers.blind_gauss_newton import _IMAGE_STEPS, coarse, fine
from recon_core.solvers.decomposed_diffusion import decomposed_diffusion

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

PLANNED = sum(s.steps + s.more for s in (coarse(None), fine(None))) + _IMAGE_STEPS
"""Steps, at most."""

CACHE = ContentCache(2**28)
"""Most tests solve with the same kernels and prior."""


@pytest.fixture(autouse=True)
def no_progress_is_told(monkeypatch):
    """Which slow machines would do in between."""
    monkeypatch.setattr("gadgets.solver.PROGRESS_SECONDS", math.inf)


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


def judged(monkeypatch, without: float | Tensor, corrected: float | Tensor) -> None:
    """Says how far held-out interleaves are missed, after all models for it were made."""
    misfits = itertools.cycle([torch.as_tensor(missed).expand(400) for missed in (without, corrected)])
    monkeypatch.setattr(blind_solver, "held_out_misfits", lambda *_: next(misfits))


def shorten(monkeypatch, steps: int) -> None:
    """So many steps in each stage, and three for the image, with fewer draws in each; the field is believed."""
    judged(monkeypatch, 2.0, 1.0)
    monkeypatch.setattr(blind_solver, "decomposed_diffusion", partial(decomposed_diffusion, steps=5))
    for name in ("coarse", "fine", "alone"):
        stage = getattr(blind_solver, name)
        monkeypatch.setattr(
            blind_solver, name, lambda problem, stage=stage: replace(stage(problem), steps=steps, more=0)
        )
    for name, few in (("_IMAGE_STEPS", 3), ("_LOOKS", 1), ("_DRAWS", 2)):
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
    """With maps and a grid that are exact, the field is better than it is said to be."""
    image, field_map, deviation, *_, frame = found
    assert rms_hz(FIELD_HZ) > 15
    assert rms_hz(field_map.data - FIELD_HZ) < 4
    assert image_error(image.data) < 0.1
    told = rms_hz(deviation.data)
    assert 0.5 < told / field_error(frame) < 10


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
    how, judged, course = found[-1].history
    steps = re.match(
        r"BlindSolver: gauss_newton with head_unet, smooth fields within 100 Hz, 2 samples, (\d+) of (\d+) steps in ",
        how,
    )
    assert coarse(None).steps + fine(None).steps + _IMAGE_STEPS <= int(steps[1]) == int(steps[2]) <= PLANNED
    words = re.fullmatch(
        r"BlindSolver: held-out interleaves are missed by (\S+) per sample with the field, (\S+) without "
        r"\(standard error of the gain (\S+)\)",
        judged,
    )
    with_field, without, by_chance = map(float, words.groups())
    assert 2 * with_field < without
    assert 0.003 < by_chance < 0.1 * (without - with_field)
    low, high = (float(value) for value in found[1].data.aminmax())
    assert course.startswith(f"BlindSolver: field from {low:.0f} to {high:.0f} Hz; misfit per sample ")
    misfits = [float(value) for value in course.split("misfit per sample ")[1].replace("at last ", "").split(", ")]
    assert misfits[0] > 3 * misfits[-1]
    assert misfits[-1] == pytest.approx(1, abs=0.4)


def test_each_series_has_an_index_and_a_kind_of_its_own(kspace, short):
    opened = session(header(matrix=(N, N, 1), fov=(FOV_MM, FOV_MM, 5)), cache=CACHE)
    gadgets = [BlindSolver(prior="head_unet", samples=1, refine_coil_maps=True), ImageExport()]
    images = [item for item in run(gadgets, [scanned(kspace)], opened) if isinstance(item, ismrmrd.Image)]
    expected = ["image", "field_map", "field_deviation", *["coil_maps"] * COILS]
    assert [kind_of(image) for image in images] == [SERIES[kind].description for kind in expected]
    assert [image.image_series_index for image in images] == [1, 3, 6, *[5] * COILS]
    assert solver_report(images[0])[0] == 7
    assert 1 < rms_hz(torch.from_numpy(field_of(images[1])[0])) < 40


def test_a_field_map_of_an_earlier_gadget_is_where_it_begins(kspace, held):
    """A smooth basis holds the true field to less than 1 Hz."""
    assert field_error(solved(scanned(kspace, FIELD_HZ))[-1]) < 1
    assert field_error(solved(scanned(kspace))[-1]) > 15


def test_what_a_known_map_holds_beyond_the_limit_counts_as_the_limit(kspace, held):
    """A pixel of a measured map that is far out moves the field about it by some Hz, not by thousands."""
    known = FIELD_HZ.clone()
    known[N // 2, N // 2] = 1e5
    assert field_error(solved(scanned(kspace, known))[-1]) < 10


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


@pytest.mark.parametrize(("method", "planned"), [("gauss_newton", PLANNED), ("red_diff", 1000)])
def test_ends_when_the_time_is_over_and_says_so(kspace, monkeypatch, method, planned):
    judged(monkeypatch, 2.0, 1.0)
    *_, frame = solved(scanned(kspace), method=method, time_budget=1e-9)
    how, _, course = frame.history
    assert f"1 of {planned} steps" in how
    assert "when the time budget was spent" in how
    assert "misfit per sample" in course
    assert torch.isfinite(frame.image.abs()).all()


def test_no_signal_gives_an_empty_image_and_no_field(kspace, short):
    """Nor that of the slice before."""
    silent = scanned(torch.zeros_like(kspace))
    opened = session(header(), cache=CACHE)
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


def test_an_echo_time_leaves_the_field_as_it_is(kspace, short):
    """Which of the image's phase was there at the excitation, nothing tells.

    The prior denoises an image of another phase a little differently: 1 to 3 % after two steps of each stage.
    """
    early, late = (solved(scanned(kspace, late=seconds))[-1].field_map for seconds in (0.0, 0.03))
    assert rms_hz(early) > 3
    assert rms_hz(late - early) < 0.05 * rms_hz(early)


def test_red_diff_finds_a_polynomial(kspace, monkeypatch):
    judged(monkeypatch, 2.0, 1.0)
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


def wrong_maps() -> Tensor:
    """Off by smooth errors, 8 % root mean square of all of them together; of unit norm."""
    waves = torch.stack([torch.exp(2j * math.pi * (p * Y + q * X)) for p in (-1.5, 0, 1.5) for q in (-1.5, 0, 1.5)])
    off = torch.einsum("ck,kyx->cyx", complex_noise(COILS, 9, seed=4, dtype=torch.complex128), waves)
    wrong = MAPS + 0.08 * off / off.abs().square().sum(0).mean().sqrt()
    return (wrong / wrong.abs().square().sum(0).sqrt()).to(torch.complex64)


def maps_error(maps: Tensor) -> float:
    """A phase in each pixel that all coils have in common is the image's."""
    phase = torch.sgn((maps.conj() * MAPS).sum(0))
    return relative((phase * maps - MAPS)[:, MASK], MAPS[:, MASK])


@pytest.fixture(scope="module")
def refined(kspace):
    """Beginning with wrong maps."""
    frame = scanned(kspace)
    frame.coil_maps = wrong_maps()
    return solved(frame, refine_coil_maps=True)


def test_coil_maps_that_are_sought_too_leave_one_by_one_after_the_field(refined):
    assert kinds(refined) == ["image", "field_map", "field_deviation", *["coil_maps"] * COILS, "frame"]
    assert all(item.frame is refined[-1] for item in refined[:-1])


def test_wrong_coil_maps_are_mended_and_later_gadgets_get_them(refined):
    frame = refined[-1]
    assert torch.equal(frame.coil_maps, torch.stack([item.data for item in refined[3:-1]]))
    assert maps_error(frame.coil_maps) < 0.4 * maps_error(wrong_maps())
    assert field_error(frame) < 4
    assert "smooth fields within 100 Hz, coil maps, 1 sample" in frame.history[0]


def test_coil_maps_stay_unless_they_are_to_be_sought(found):
    assert torch.equal(found[-1].coil_maps, MAPS.to(torch.complex64))


def test_the_map_of_a_single_coil_has_nothing_to_be_told_from(short):
    """All that it could change is the image."""
    signal = exact_signal(IMAGE, torch.ones_like(MAPS[:1]), FIELD_HZ, TRAJECTORY.double(), TIMES.double())
    frame = scanned(signal.to(torch.complex64))
    frame.coil_maps = torch.ones(1, N, N, dtype=torch.complex64)
    results = solved(frame, refine_coil_maps=True)
    assert kinds(results) == ["image", "field_map", "field_deviation", "coil_maps", "frame"]
    assert torch.equal(results[3].data, torch.ones(N, N, dtype=torch.complex64))


def require_uncorrected(results, told: list[str], reason: str, how: str = "without a correction for off-resonance"):
    """That no field leaves, which is told and stands in the history."""
    *_, frame = results
    note = f"BlindSolver: no field was found, the image is {how}: "
    assert kinds(results) == ["image", "frame"]
    assert frame.history[-1].startswith(note)
    assert frame.caveat == f"no field was found, the image is {how}"
    assert re.search(reason, frame.history[-1])
    assert told == [f"{frame.label}: {frame.history[-1]}"]
    assert torch.equal(frame.coil_maps, MAPS.to(torch.complex64))
    assert torch.equal(frame.image, results[0].data)


@pytest.mark.parametrize("refine", [False, True])
def test_a_field_that_is_beyond_the_limit_in_much_of_the_object_is_not_believed(kspace, short, refine):
    opened = session(header(), cache=CACHE)
    results = solved(scanned(kspace), opened=opened, limit=10.0, refine_coil_maps=refine)
    reason = r"the field is at the limit of 10 Hz where \d\d\.\d% of the signal is; try a larger BlindSolver\.limit"
    require_uncorrected(results, opened.tell, reason)
    assert results[-1].field_map is None


def test_a_field_at_the_limit_in_a_small_part_of_the_object_is_told(kspace, held):
    """Beyond, it is cut off."""
    told = []
    for limit in (35.0, 100.0):
        opened = session(header(), cache=CACHE)
        low, high = solved(scanned(kspace, FIELD_HZ), opened=opened, limit=limit)[-1].field_map.aminmax()
        told.append(opened.tell.about("limit"))
        assert -limit <= float(low)
        assert (float(high) == limit) == (limit == 35.0)
    (one,), none = told
    assert "the field is at the limit of 35 Hz where" in one
    assert "and may be larger there; try a larger BlindSolver.limit" in one
    assert none == []


@pytest.mark.parametrize("corrected", [1.0, math.nan])
def test_a_field_with_which_held_out_interleaves_are_not_better_foretold_is_not_believed(
    kspace, short, monkeypatch, corrected
):
    judged(monkeypatch, 1.0, corrected)
    opened = session(header(), cache=CACHE)
    results = solved(scanned(kspace), opened=opened)
    reason = f"held-out interleaves are missed by {corrected:.4g} per sample with the field, 1 without"
    require_uncorrected(results, opened.tell, reason)
    assert results[-1].field_map is None


@pytest.mark.parametrize(("gain", "believed"), [(0.05, False), (0.3, True)])
def test_a_field_is_not_believed_for_a_gain_that_may_be_chance(kspace, short, monkeypatch, gain, believed):
    """Of 400 samples, whose gains have the deviation one, 0.15 is three standard errors."""
    chance = torch.tensor([1.0, -1.0]).repeat(200)
    judged(monkeypatch, 1.5 + gain + chance, 1.5)
    opened = session(header(), cache=CACHE)
    results = solved(scanned(kspace), opened=opened)
    assert ("field_map" in kinds(results)) == believed
    if not believed:
        reason = r"missed by 1\.5 per sample with the field, 1\.55 without \(standard error of the gain 0\.05\)"
        require_uncorrected(results, opened.tell, reason)


def test_a_field_map_of_an_earlier_gadget_stays_where_none_is_found(kspace, short, monkeypatch):
    judged(monkeypatch, 1.0, 1.5)
    opened = session(header(), cache=CACHE)
    results = solved(scanned(kspace, FIELD_HZ), opened=opened)
    require_uncorrected(results, opened.tell, "held-out", how="with the map of before")
    assert torch.equal(results[-1].field_map, FIELD_HZ.float())
    assert image_error(results[0].data) < 0.13  # without any field, 0.17


def test_interleaves_are_held_out_of_the_scan_and_missed_less_with_the_true_field(kspace, monkeypatch):
    """On half the grid, one of four."""
    seen, states, misfit = [], [], blind_solver.held_out_misfits

    def remembered(problem, prior, generator, held_out, kspace):
        seen.append((problem.model.encoding.sampling.trajectory.shape[1], *kspace.shape[:2], *problem.data.shape))
        states.append(generator.get_state())
        return misfit(problem, prior, generator, held_out, kspace)

    shorten(monkeypatch, 1)
    monkeypatch.setattr(blind_solver, "held_out_misfits", remembered)
    frame = solved(scanned(kspace))[-1]
    assert seen == [(SHOTS - 1, COILS, 1, N // 2, N // 2)] * 2
    assert torch.equal(*states)  # both with the same noise
    assert field_error(frame) < rms_hz(FIELD_HZ)


def test_of_a_single_interleaf_none_can_be_held_out(kspace, short, monkeypatch):
    monkeypatch.setattr(blind_solver, "held_out_misfits", None)
    frame = scanned(kspace[:, :1])
    frame = replace(frame, samples=Samples(kspace[:, :1], TRAJECTORY[:, :1]), times=frame.times[:1])
    results = solved(frame)
    assert kinds(results) == ["image", "field_map", "field_deviation", "frame"]
    assert "BlindSolver: there is no other interleaf to judge the field by" in frame.history


@pytest.mark.parametrize(("pixels", "fields"), [(0, "smooth"), (3, "polynomial")])
def test_no_field_is_looked_for_without_an_object(kspace, short, monkeypatch, pixels, fields):
    mask = torch.zeros(1, N, N, dtype=torch.bool)
    mask[0, 10, 10 : 10 + pixels] = True
    monkeypatch.setattr(blind_solver, "object_mask", lambda *_: mask)
    opened = session(header(), cache=CACHE)
    results = solved(scanned(kspace), opened=opened, fields=fields)
    require_uncorrected(results, opened.tell, "there is no object to look for a field in: expected a mask of at least")
    assert results[-1].field_map is None


def test_a_field_that_was_not_found_is_not_that_of_the_slice_before(kspace, short, monkeypatch):
    """Nor does the next one have its caveat; what an earlier gadget has to say stays."""
    verdicts = iter([2.0, 1.0, 1.0, 2.0, 2.0, 1.0])
    monkeypatch.setattr(blind_solver, "held_out_misfits", lambda *_: torch.full((400,), next(verdicts)))
    results = solved(scanned(kspace), replace(scanned(kspace), caveat="shaken"), scanned(kspace))
    believed = ["image", "field_map", "field_deviation", "frame"]
    assert kinds(results) == [*believed, "image", "frame", *believed]
    assert results[5].field_map is None
    assert results[5].caveat == "shaken; no field was found, the image is without a correction for off-resonance"
    assert results[3].caveat == results[-1].caveat == ""


@pytest.mark.parametrize("coils", [1, 4])
def test_cartesian_lines_are_solved_on_one_grid(short, coils):
    """Their early samples lie anywhere but around the centre."""
    frame = Phantom.scanned(cartesian(), coils, 1.0, 50 * phantom_head()).frame(with_maps=True)
    frame.times = torch.linspace(0, 5e-4, frame.times.shape[1]).expand_as(frame.times)
    results = solved(frame, samples=2)
    assert kinds(results) == ["image", "field_map", "field_deviation", "deviation", "frame"]
    assert "7 of 7 steps" in frame.history[0]  # two of the field, three of the image, two draws of the field
    truth = torch.from_numpy(50 * phantom_head()).abs()
    assert relative(results[0].data.abs() - truth, truth) < 0.2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 5}, "steps is set, but has no effect with method gauss_newton"),
        ({"order": 3}, "order is set, but has no effect with fields smooth"),
        ({"method": "red_diff", "fields": "polynomial"}, "fields is set, but has no effect with method red_diff"),
        (
            {"method": "red_diff", "refine_coil_maps": True},
            "refine_coil_maps is set, but has no effect with method red",
        ),
        ({"method": "red_diff", "seek_shim": True}, "seek_shim is set, but has no effect with method red_diff"),
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
    assert blind.refine_coil_maps == (name == "blind_joint")


def test_the_outline_is_that_in_the_field_that_is_known():
    """A shim moves and blurs the image that knows none: the mask with the map is that of no field at all."""
    shim = 100 + 300 * X
    still, moved = (
        exact_signal(IMAGE, MAPS, field, TRAJECTORY.double(), TIMES.double()).to(torch.complex64)
        for field in (torch.zeros_like(shim), shim)
    )
    solver = BlindSolver(prior="head_unet", limit=600.0)
    solver.open(session(header(), cache=CACHE))
    frames = scanned(still), scanned(moved, shim), scanned(moved)
    right, known, unknown = (solver._mask(frame) for frame in frames)
    assert (right != known).sum() < 0.05 * right.sum() < (right != unknown).sum()


FAR_SHIM_HZ = 720 + 1000 * X - 480 * Y
MANY = spiral_trajectory(N, 16, 250)
MANY_TIMES = torch.linspace(0, 0.003, 250)
"""Of a spiral without undersampling, which misleads the search for a shim."""


@pytest.fixture(scope="module")
def far() -> Frame:
    """With noise of unit variance."""
    signal = exact_signal(IMAGE, MAPS, FIELD_HZ + FAR_SHIM_HZ, MANY.double(), MANY_TIMES.double())
    kspace = (signal + complex_noise(*signal.shape, seed=1, dtype=signal.dtype)).to(torch.complex64)
    return replace(scanned(kspace), samples=Samples(kspace, MANY), times=MANY_TIMES.repeat(16, 1))


def test_a_far_shim_is_where_joint_steps_begin(far, monkeypatch):
    """In two short stages, which are too few without. In the history it has the units of shim coils."""
    shorten(monkeypatch, 2)
    opened = session(header(), cache=CACHE)
    begun, without = (
        solved(replace(far, history=[]), opened=opened, limit=1200.0, fields="polynomial", order=3, seek_shim=seek)[-1]
        for seek in (True, False)
    )
    assert rms_hz(begun.field_map - FIELD_HZ - FAR_SHIM_HZ) < 15
    assert rms_hz(without.field_map - FIELD_HZ - FAR_SHIM_HZ) > 300
    (note,) = (note for note in begun.history if "shim" in note)
    words = re.fullmatch(
        r"BlindSolver: begins with a shim of (\S+) Hz, (\S+) Hz/cm along y and (\S+) Hz/cm along x makes the image "
        r"(\S+)% sharper",
        note,
    )
    offset, y, x, gain = map(float, words.groups())
    assert offset == pytest.approx(720, abs=20)
    assert (y, x) == pytest.approx((-480 / 21, 1000 / 21), abs=3)
    assert gain > 25
    assert opened.tell == []
    assert not any("shim" in note for note in without.history)


def require_no_shim(frame: Frame, told: list[str], reason: str) -> None:
    """Which is told and stands in the history, once."""
    (note,) = (note for note in frame.history if "shim" in note)
    assert re.fullmatch(f"BlindSolver: no clear shim: {reason}", note)
    assert told == [f"{frame.label}: {note}"]


def test_a_shim_that_hardly_sharpens_is_not_believed(kspace, short):
    """Then the search begins at zero, as it does without."""
    opened = session(header(), cache=CACHE)
    frame, without = solved(scanned(kspace), opened=opened, seek_shim=True)[-1], solved(scanned(kspace))[-1]
    reason = (
        r"the best one, \S+ Hz, \S+ Hz/cm along y and \S+ Hz/cm along x makes the image \S+% sharper, "
        "which is less than 25%; the search begins at zero"
    )
    require_no_shim(frame, opened.tell, reason)
    assert torch.equal(frame.field_map, without.field_map)


def test_too_far_a_search_for_a_shim_is_refused(kspace, short, monkeypatch):
    monkeypatch.setattr("recon_core.calibration.shim.MOST_PLANES", 5)
    opened = session(header(), cache=CACHE)
    frame = solved(scanned(kspace), opened=opened, seek_shim=True)[-1]
    reason = "100 Hz in 12 ms make 79 candidates, more than 5; a limit of 39 Hz makes fewer; the search begins at zero"
    require_no_shim(frame, opened.tell, reason)


def test_no_shim_is_sought_where_a_field_map_is_known(kspace, held):
    opened = session(header(), cache=CACHE)
    frame = solved(scanned(kspace, FIELD_HZ), opened=opened, seek_shim=True)[-1]
    reason = "seek_shim has no effect where a field map is known; the search begins with the field map of before"
    require_no_shim(frame, opened.tell, reason)
    assert field_error(frame) < 1
