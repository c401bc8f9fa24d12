"""Diffusion in the stream, with priors of which the answer is known; what the methods find is tested with them."""

from __future__ import annotations

import time

import ismrmrd
import numpy as np
import pytest
import torch

from gadgets import prior as priors
from gadgets import solver
from gadgets.diffusion_solver import METHODS, DiffusionSolver
from gadgets.frame import Frame, Samples, Space
from pipelines.definition import DEFINITIONS, find_definition
from pipelines.errors import PeerVanished, PipelineError
from pipelines.registry import installed_gadgets
from recon_core.priors.prior import Convention, Prior

from analytic import direct_sum, ring_of_coils, smooth_head
from phantom_scan import SIZE, Phantom, cartesian, error, head
from scans import header, run, session

SPREAD = 0.5
"""Of the pixels that the prior knows, per real channel: all of them independent."""


class WhitePrior(Prior):
    """The exact denoiser of white Gaussian images, which counts how often it is asked and takes its time."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__(self._wiener, Convention("percentile99", 0.005, 2.0), "white")
        self.seconds, self.asked = seconds, 0

    def _wiener(self, channels, sigma):
        self.asked += 1
        time.sleep(self.seconds)
        return channels * (SPREAD**2 / (SPREAD**2 + sigma**2))[:, None, None, None]


@pytest.fixture(autouse=True)
def prior(monkeypatch) -> WhitePrior:
    known = WhitePrior()
    monkeypatch.setattr(priors, "load_prior", lambda name, device: known)
    return known


def scanned(trajectory=None, brightness=20.0, coils=4, **counters) -> Frame:
    """A frame with noise of unit variance; the head has about the brightness."""
    phantom = Phantom.scanned(cartesian() if trajectory is None else trajectory, coils, 1.0, brightness * head())
    frame = phantom.frame(with_maps=True)
    for name, value in counters.items():
        setattr(frame.reference.idx, name, value)
    return frame


def solved(*frames, opened=None, **properties):
    return run([DiffusionSolver(**properties)], frames, opened or session(header()))


def images(results, kind="image"):
    return [item.data for item in results if getattr(item, "kind", None) == kind]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_the_image_in_its_own_units(method):
    """More steps for RED-diff than with a prior of heads: this one lets noise through at every level."""
    steps = 400 if method in ("csgm_langevin", "red_diff") else 0
    image, *_, frame = solved(scanned(brightness=200.0), method=method, steps=steps)
    assert frame.image is image.data
    assert error(image.data, 200 * head()) < 0.05
    assert frame.history[0].startswith(f"DiffusionSolver: {method} with head_unet_large, 4 samples, ")


def test_the_deviation_is_that_of_the_posterior_in_the_units_of_the_image():
    """Full sampling with maps of unit norm leaves the variance of the noise, one, and the prior hardly any less."""
    image, deviation, _ = solved(scanned(brightness=5.0), method="preconditioned_langevin", samples=6)
    assert (image.kind, deviation.kind) == ("image", "deviation")
    assert not deviation.data.is_complex()
    assert 0.9 < deviation.data.square().mean().sqrt() < 1.05


def test_one_sample_has_no_deviation():
    assert [type(item).__name__ for item in solved(scanned(), samples=1)] == ["SeriesImage", "Frame"]


@pytest.mark.parametrize(
    ("method", "steps", "done"),
    [
        ("decomposed_diffusion", 7, 7),
        ("red_diff", 7, 7),
        ("score_langevin", 4, 4),
        ("pseudo_inverse_langevin", 21, 25),
        ("preconditioned_langevin", 9, 12),
    ],
)
def test_as_many_steps_as_asked(prior, method, steps, done):
    *_, frame = solved(scanned(), method=method, steps=steps)
    assert f"{done} of {done} steps" in frame.history[0]
    assert prior.asked in (done, done + 1)


def test_csgm_langevin_takes_about_as_many_steps_as_asked(prior):
    *_, frame = solved(scanned(), method="csgm_langevin", steps=300)
    assert 250 < prior.asked < 350
    assert f"{prior.asked} of {prior.asked} steps" in frame.history[0]


def test_an_image_does_not_depend_on_what_came_before():
    one, two = {"slice": 1}, {"slice": 2}
    first, second = images(solved(scanned(**one), scanned(**two)))
    again, before = images(solved(scanned(**two), scanned(**one)))
    torch.testing.assert_close(first, before, rtol=0, atol=0)
    torch.testing.assert_close(second, again, rtol=0, atol=0)
    assert not torch.equal(first, second)


def test_another_seed_draws_other_samples():
    zero, one = (images(solved(scanned(), opened=session(header(), seed=seed)))[0] for seed in (0, 1))
    assert not torch.equal(zero, one)


def test_slices_are_solved_at_once_and_leave_in_order():
    frames = [scanned(brightness=20.0 * (number + 1), slice=number) for number in range(5)]
    results = solved(*frames, slices_per_batch=2)
    assert [item.reference.idx.slice for item in results if isinstance(item, Frame)] == [0, 1, 2, 3, 4]
    assert [item.frame for item in results if getattr(item, "kind", None) == "deviation"] == frames
    for number, image in enumerate(images(results)):
        assert error(image, 20 * (number + 1) * head()) < 0.15 / (number + 1)
    assert ["2 slices at once" in frame.history[-1] for frame in frames] == [True] * 4 + [False]


def test_a_batch_holds_what_can_be_solved_at_once():
    backwards = scanned(cartesian(range(SIZE - 1, -1, -1)), slice=2)
    frames = [scanned(slice=0), scanned(slice=1), backwards, scanned(slice=3)]
    results = solved(*frames, slices_per_batch=4)
    assert [item for item in results if isinstance(item, Frame)] == frames
    assert ["2 slices at once" in frame.history[-1] for frame in frames] == [True, True, False, False]
    assert all(error(image, 20 * head()) < 0.15 for image in images(results))


def test_each_slice_of_a_batch_has_its_own_field():
    """The field turns the phase of all samples alike, since they are all taken at the same time."""
    frames = [scanned(slice=number) for number in range(2)]
    for frame, hertz in zip(frames, (80.0, -30.0), strict=True):
        frame.times = torch.full_like(frame.times, 2e-3)
        frame.field_map = torch.full((SIZE, SIZE), hertz)
    for image, hertz in zip(images(solved(*frames, slices_per_batch=2)), (80.0, -30.0), strict=True):
        assert error(image, 20 * head() * np.exp(2j * np.pi * hertz * 2e-3)) < 0.15
    assert all("off-resonance from -50 to 100 Hz" in frame.history[0] for frame in frames)


def test_the_best_image_so_far_leaves_when_the_time_is_over(prior):
    prior.seconds = 0.02
    image, *_, frame = solved(scanned(), steps=10000, time_budget=0.1)
    assert prior.asked < 20
    assert f"{prior.asked - 1} of 10000 steps" in frame.history[0]  # and once more, to take the noise off
    assert "when the time budget was spent" in frame.history[0]
    assert error(image.data, 20 * head()) < 0.15


def test_the_client_hears_of_long_runs_only(monkeypatch):
    opened = session(header())
    solved(scanned(slice=3), opened=opened)
    assert opened.tell == []
    monkeypatch.setattr(solver, "PROGRESS_SECONDS", 0.0)
    solved(scanned(slice=3), opened=opened, steps=3)
    assert opened.tell == [f"slice 3, contrast 0, repetition 0: {done} of 3 steps" for done in range(3)]


def test_it_stops_when_the_client_is_gone(prior):
    def require_client():
        if prior.asked == 2:
            raise PeerVanished("the peer is gone")

    with pytest.raises(PeerVanished):
        solved(scanned(), opened=session(header(), require_client=require_client))
    assert prior.asked == 2


def test_no_signal_gives_an_empty_image_and_says_so():
    silent = scanned(slice=1)
    silent.samples.kspace.zero_()
    opened = session(header())
    results = solved(scanned(), silent, scanned(slice=2), opened=opened, slices_per_batch=3)
    assert [item.reference.idx.slice for item in results if isinstance(item, Frame)] == [0, 1, 2]
    assert [bool(image.any()) for image in images(results)] == [True, False, True]
    assert [bool(deviation.any()) for deviation in images(results, "deviation")] == [True, False, True]
    assert opened.tell == ["slice 1, contrast 0, repetition 0: " + silent.history[-1]]
    assert silent.history[-1] == "DiffusionSolver: all samples are zero, and so is the image"


def test_says_which_samples_are_not_finite():
    frame = scanned()
    frame.samples.kspace[0, 3, :2] = torch.nan
    with pytest.raises(ValueError, match=f"2 of {frame.samples.kspace.numel()} samples of k-space are not finite"):
        solved(frame)


def test_samples_that_cannot_hold_noise_of_unit_variance_are_refused():
    """The noise was measured with other gains, say; the image would be the prior's alone."""
    with pytest.raises(
        ValueError, match="expected prewhitened samples.* variance 0.0.* at most in slice 0.*noise scan"
    ):
        solved(Phantom.scanned(cartesian(), 4, 0.1, 20 * head()).frame(with_maps=True))
    silent = scanned(brightness=0.0)
    assert not images(solved(silent))[0].isnan().any()


@pytest.mark.parametrize("lack", ["half of each readout", "a channel", "nothing"])
def test_samples_that_hold_noise_of_unit_variance_are_taken(lack):
    """Those that were not measured hold rounding errors."""
    frame = scanned(brightness=1.0)
    dust = 1e-6 * torch.randn_like(frame.samples.kspace)
    if lack == "half of each readout":
        frame.samples.kspace[..., : SIZE // 2] = dust[..., : SIZE // 2]
    elif lack == "a channel":
        frame.samples.kspace[1:] = dust[1:]
    assert images(solved(frame, steps=2))


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e4])
def test_noise_that_was_not_measured_is_estimated_and_told(size):
    """What a scanner sends is of any size: image and deviation are on its scale, else as with the noise known."""
    frame = scanned(brightness=50.0, slice=1)
    known = images(solved(frame, method="preconditioned_langevin"), "deviation")[0]
    unknown = scanned(brightness=50.0, slice=1)
    unknown.samples.kspace.mul_(size)
    opened = session(header(), noise_known=False)
    image, deviation, _ = solved(unknown, method="preconditioned_langevin", opened=opened)
    assert error(image.data / size, 50 * head()) < 0.08
    ratio = (deviation.data / size).square().mean().sqrt() / known.square().mean().sqrt()
    assert 0.9 < ratio < 1.15
    (told,) = opened.tell.about("noise")
    assert "the noise was not measured, and is estimated from" in told
    assert "NoisePrewhitening takes it from a noise scan" in told
    noise = float(unknown.history[0].split("noise of ")[1].split(" per sample, estimated from")[0])
    assert noise == pytest.approx(size, rel=0.15)


def test_the_estimate_is_told_once_and_is_of_each_slice():
    frames = [scanned(slice=number) for number in range(2)]
    frames[1].samples.kspace.mul_(100)
    opened = session(header(), noise_known=False)
    one, other = images(solved(*frames, opened=opened, slices_per_batch=2))
    assert len(opened.tell.about("noise")) == 1
    assert error(one, 20 * head()) < 0.15
    assert error(other, 2000 * head()) < 0.15


def test_noise_that_is_neither_measured_nor_to_be_seen_is_refused():
    frame = scanned()
    frame.samples.kspace[:, frame.samples.trajectory.square().sum(0) > 18**2] = 0
    with pytest.raises(ValueError, match="noise of slice 0.* was not measured.* expected noise.*from a noise scan"):
        solved(frame, opened=session(header(), noise_known=False))


def test_refuses_three_dimensions():
    frame = scanned()
    frame.space = Space((8, SIZE, SIZE), (40.0, 240.0, 240.0), (8, SIZE, SIZE), (40.0, 240.0, 240.0))
    with pytest.raises(ValueError, match="two-dimensional images, got the matrix 8 x 48 x 48"):
        solved(frame)


def test_a_single_coil_and_every_line():
    """No acceleration, nothing that coils could tell: the noise alone is left."""
    image, deviation, _ = solved(scanned(coils=1))
    assert error(image.data, 20 * head()) < 0.15
    assert torch.isfinite(deviation.data).all()


def test_a_rectangular_matrix():
    ny, nx = 24, 32
    truth, maps = 30 * smooth_head(nx)[4:28], ring_of_coils(nx, 4)[:, 4:28]
    y, x = torch.meshgrid(torch.arange(ny) - ny // 2, torch.arange(nx) - nx // 2, indexing="ij")
    trajectory = torch.stack([y, x]).float()
    kspace = direct_sum(maps * truth, trajectory).to(torch.complex64)
    kspace += torch.randn(kspace.shape, generator=torch.Generator().manual_seed(1), dtype=kspace.dtype)
    space = Space((1, ny, nx), (5.0, 180.0, 240.0), (1, ny, nx), (5.0, 180.0, 240.0))
    frame = Frame(Samples(kspace, trajectory), torch.zeros(ny, nx), space, ismrmrd.AcquisitionHeader())
    frame.coil_maps = maps.to(torch.complex64)
    image, *_ = solved(frame)
    assert image.data.shape == (ny, nx)
    assert error(image.data, truth.numpy()) < 0.15


@pytest.fixture
def shipped(monkeypatch):
    """The priors themselves, and what was read of them."""
    from recon_core.priors.library import load_prior

    read = []

    def load(name, device):
        read.append(name)
        return load_prior(name, device)

    monkeypatch.setattr(priors, "load_prior", load)
    return read


def test_a_prior_that_is_not_there_is_named_before_data_arrive(shipped, tmp_path):
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"no weights")
    for name, message in (
        ("haed_unet", "no prior is called 'haed_unet'; there are head_"),
        (other, "is not a prior"),
        (tmp_path / "none.safetensors", "cannot read the prior .*none.safetensors: No such file"),
    ):
        with pytest.raises(ValueError, match=message):
            DiffusionSolver(prior=str(name)).open(session(header()))


def test_sessions_share_the_prior_until_its_file_changes(shipped, tmp_path):
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(priors.shipped_priors()["head_pogmdm"].read_bytes())
    opened = session(header())
    for name in ("head_pogmdm", "head_pogmdm", str(mine), str(mine)):
        DiffusionSolver(prior=name).open(opened)
    assert shipped == ["head_pogmdm", str(mine)]
    mine.write_bytes(b"something else")
    with pytest.raises(ValueError, match="is not a prior"):
        DiffusionSolver(prior=str(mine)).open(opened)


@pytest.mark.parametrize("kind", ["", "pogmdm:"])
def test_the_history_names_a_file_by_its_digest_and_not_by_where_it_lies(tmp_path, kind):
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(b"weights")
    *_, frame = solved(scanned(), prior=f"{kind}{mine}", steps=3)
    # printf weights | sha256sum
    assert f"with {kind}mine.safetensors (sha256 9a129038d9a0), 4 samples" in frame.history[-1]
    assert str(tmp_path) not in " ".join(frame.history)


def test_the_network_chooses_among_the_shipped_priors_but_names_no_file():
    definition = find_definition("diffusion", [DEFINITIONS])

    def built(name):
        return definition.override({"DiffusionSolver.prior": name}, "parameters", local=False).build(
            installed_gadgets()
        )

    assert [gadget.prior for gadget in built("head_pogmdm") if isinstance(gadget, DiffusionSolver)] == ["head_pogmdm"]
    for name in ("pogmdm:/etc/passwd", "/etc/passwd.safetensors"):
        with pytest.raises(PipelineError, match="not over the network; names can be"):
            built(name)
    with pytest.raises(PipelineError, match="did you mean 'head_unet'"):
        built("haed_unet")
