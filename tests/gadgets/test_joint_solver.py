"""Image and coil maps in the stream, from a scan whose maps nobody gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gadgets import prior as priors
from gadgets.frame import Frame
from gadgets.joint_solver import JointSolver
from pipelines.definition import DEFINITIONS, find_definition
from pipelines.registry import installed_gadgets
from recon_core.priors.prior import Convention, Prior

from phantom_scan import SIZE, Phantom, cartesian, head
from scans import header, run, session

COILS = 4


@pytest.fixture(autouse=True)
def prior(monkeypatch) -> None:
    """The exact denoiser of white Gaussian images of the variance one in either part."""

    def wiener(channels, sigma):
        return channels / (1 + sigma**2)[:, None, None, None]

    known = Prior(wiener, Convention("maximum", 0.005, 2.0), "white")
    monkeypatch.setattr(priors, "load_prior", lambda name, device: known)


def scanned(with_maps: bool = False, **counters) -> Frame:
    frame = Phantom.scanned(cartesian(), COILS, 1.0, 50 * head()).frame(with_maps=with_maps)
    for name, value in counters.items():
        setattr(frame.reference.idx, name, value)
    return frame


def solved(*frames, opened=None, **properties):
    return run([JointSolver(**properties)], frames, opened or session(header()))


def kinds(results):
    return [getattr(item, "kind", "frame") for item in results]


@pytest.mark.parametrize("with_maps", [False, True])
def test_image_and_maps_are_found_with_and_without_maps_to_begin_with(with_maps):
    results = solved(scanned(with_maps), samples=2)
    assert kinds(results) == ["image", "deviation", *["coil_maps"] * COILS, "frame"]
    frame = results[-1]
    maps = torch.stack([item.data for item in results if getattr(item, "kind", None) == "coil_maps"])
    assert torch.equal(maps, frame.coil_maps)
    torch.testing.assert_close(maps.abs().square().sum(0), torch.ones(maps.shape[1:]))
    truth = np.abs(50 * head())
    error = np.linalg.norm(results[0].data.abs().numpy() - truth) / np.linalg.norm(truth)
    assert error < 0.1
    assert frame.history[-1].startswith(
        "JointSolver: image and coil maps with head_pogmdm, weight 1, 2 samples, smoothness 3, 20"
    )


def test_the_maps_are_those_of_the_coils():
    phantom = Phantom.scanned(cartesian(), COILS, 1.0, 50 * head())
    maps = solved(phantom.frame(with_maps=False), samples=1)[-1].coil_maps
    true = phantom.frame(with_maps=True).coil_maps * torch.as_tensor(50 * head())
    missed = true - maps * (maps.conj() * true).sum(0)
    assert torch.linalg.vector_norm(missed) < 0.1 * torch.linalg.vector_norm(true)


def test_calibration_lines_that_are_no_part_of_the_image_say_where_to_begin():
    """From the centre of every other line come the maps of aliases: the error stays above 0.6."""
    phantom = Phantom.scanned(cartesian(range(0, SIZE, 2)), COILS, 1.0, 50 * head())
    calibration = Phantom.scanned(cartesian(range(SIZE // 2 - 8, SIZE // 2 + 8)), COILS, 1.0, 50 * head()).samples()
    image, *_, frame = solved(phantom.frame(calibration=calibration), samples=1, steps=4)
    truth = np.abs(50 * head())
    assert np.linalg.norm(image.data.abs().numpy() - truth) < 0.2 * np.linalg.norm(truth)
    assert frame.history[0] == "JointSolver: began with coil maps of the centre of the calibration lines"


def test_each_slice_of_a_batch_gets_its_own_maps():
    results = solved(scanned(slice=0), scanned(slice=1), samples=1, slices_per_batch=2)
    assert kinds(results) == ["image", *["coil_maps"] * COILS, "frame"] * 2
    assert [item.reference.idx.slice for item in results if isinstance(item, Frame)] == [0, 1]


def test_as_many_steps_as_asked_and_no_more_than_there_is_time_for():
    assert "7 of 7 steps" in solved(scanned(), steps=7)[-1].history[-1]
    assert "of 5000 steps" in solved(scanned(), steps=5000, time_budget=0.2)[-1].history[-1]


def test_no_signal_gives_an_empty_image_and_coils_that_are_alike():
    """Later gadgets are promised maps of every frame."""
    silent = scanned()
    silent.samples.kspace.zero_()
    results = solved(silent)
    assert kinds(results) == ["image", "deviation", *["coil_maps"] * COILS, "frame"]
    image, *_, frame = results
    assert not image.data.any()
    torch.testing.assert_close(frame.coil_maps, torch.full((COILS, SIZE, SIZE), 0.5, dtype=torch.complex64))
    assert frame.history == ["JointSolver: all samples are zero, and so is the image"]


def test_a_single_coil():
    image, deviation, coil_map, _ = solved(Phantom.scanned(cartesian(), 1, 1.0, 50 * head()).frame())
    truth = np.abs(50 * head())
    assert np.linalg.norm(image.data.abs().numpy() - truth) < 0.1 * np.linalg.norm(truth)
    assert torch.isfinite(deviation.data).all()
    torch.testing.assert_close(coil_map.data.abs(), torch.ones(SIZE, SIZE))


def test_samples_that_are_not_finite_are_counted():
    frame = scanned()
    frame.samples.kspace[0, 0, :3] = torch.nan
    with pytest.raises(ValueError, match=f"3 of {COILS * SIZE**2} samples of k-space are not finite"):
        solved(frame)


def test_the_pipeline_needs_no_coil_maps():
    gadgets = find_definition("joint_pogmdm", [DEFINITIONS]).build(installed_gadgets())
    names = [type(gadget).__name__ for gadget in gadgets]
    assert "JointSolver" in names
    assert "CoilMaps" not in names
