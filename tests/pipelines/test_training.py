"""`spinstream train` and `spinstream priors`, as typed."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from pipelines.cli import main
from recon_core.priors import load_prior
from recon_core.priors.card import Card
from recon_core.priors.checkpoint import read_checkpoint
from recon_core.priors.prior import Convention
from recon_core.priors.unet import UNet, UNetConfig
from recon_core.priors.weights import describe, read_prior, save_prior
from recon_core.training.corpus import Corpus, hold_out, read_corpus
from recon_core.training.figures import denoising_figures
from recon_core.training.recipes import Recipe, pogmdm_recipe, unet_recipe
from recon_core.training.trainer import Trainer


def _run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def _blobs(count: int, edge: int = 40) -> np.ndarray:
    """Bright discs of random places and sizes."""
    random = np.random.default_rng(1)
    y, x = np.mgrid[:edge, :edge]
    places, radii = random.uniform(10, edge - 10, (count, 2)), random.uniform(4, 10, count)
    distance = np.hypot(y - places[:, :1, None], x - places[:, 1:, None])
    return (distance < radii[:, None, None]).astype(np.float32)


@pytest.fixture(autouse=True)
def small_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings of a few steps in a second or two."""

    def smaller(full: Callable[..., Recipe]) -> Callable[..., Recipe]:
        def recipe(*arguments: Any) -> Recipe:
            whole = full(*arguments)
            return replace(whole, settings=replace(whole.settings, pixels=32 * 32, edges=(32,)))

        return recipe

    monkeypatch.setattr("pipelines.training.unet_recipe", smaller(unet_recipe))
    monkeypatch.setattr("pipelines.training.pogmdm_recipe", smaller(pogmdm_recipe))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    np.savez(folder / "blobs.npz", images=_blobs(40))
    return folder


def test_a_folder_of_images_becomes_a_prior_with_card_and_pictures(images: Path, tmp_path: Path) -> None:
    weights = tmp_path / "mine.safetensors"
    result = _run(
        "train",
        "unet",
        "--data",
        images,
        "-o",
        weights,
        "--steps",
        "4",
        "--licence",
        "CC0",
        "--source",
        "Blobs; CC0; none",
    )
    assert result.exit_code == 0, result.output
    assert "PSNR at noise 0.1, denoised" in result.output
    card = (tmp_path / "mine.md").read_text()
    assert "CC0" in card
    assert "Denoiser: unet; noise 0.01 to 160 of the percentile99" in card
    assert (
        "train unet --data images --output mine.safetensors --steps 4 --licence CC0 --source 'Blobs; CC0; none'" in card
    )
    for name in ("mine.safetensors", "mine.md", "mine_curve.png", "mine_samples.png", "mine.checkpoint"):
        assert (tmp_path / name).exists(), name
    assert len(list(tmp_path.iterdir())) == 6  # and the images
    assert "4 steps, seed 1" in card
    for picture in ("mine_curve.png", "mine_samples.png"):
        assert matplotlib.image.imread(tmp_path / picture).std() > 0
    noisy = torch.randn(40, 40, dtype=torch.complex64)
    assert load_prior(str(weights)).denoise(noisy, 0.5).isfinite().all()


def test_the_same_command_resumes(images: Path, tmp_path: Path) -> None:
    weights = tmp_path / "mine.safetensors"
    command = ("train", "unet", "--data", images, "-o", weights, "--steps", "2")
    assert _run(*command).exit_code == 0
    first = load_file(weights)
    assert _run(*command).exit_code == 0
    assert all(torch.equal(tensor, first[name]) for name, tensor in load_file(weights).items())
    other = _run("train", "unet", "--data", images, "-o", weights, "--steps", "3")
    assert other.exit_code == 1
    assert "mine.checkpoint is of another training: steps 2, not 3. Delete it to start anew" in other.output


def test_what_ctrl_c_stops_goes_on_as_if_it_had_not(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    handler = signal.getsignal(signal.SIGINT)  # a job in the background may ignore it
    command = ("train", "unet", "--data", images, "--steps", "4", "-o")
    assert _run(*command, whole).exit_code == 0
    advance = Trainer._advance

    def interrupted(trainer: Trainer, corpus: Corpus) -> float:
        if trainer.step == 1:
            signal.raise_signal(signal.SIGINT)
        return advance(trainer, corpus)

    monkeypatch.setattr(Trainer, "_advance", interrupted)
    stopped = _run(*command, parts)
    assert stopped.exit_code == 130
    told = f"stopped after step 2 of 4; the same command goes on from {tmp_path / 'parts.checkpoint'}"
    assert stopped.output.splitlines()[-1] == told
    assert not parts.exists()
    assert signal.getsignal(signal.SIGINT) is handler
    assert _run(*command, parts).exit_code == 0
    first = load_file(whole)
    assert all(torch.equal(tensor, first[name]) for name, tensor in load_file(parts).items())
    curves = [read_checkpoint(path.with_suffix(".checkpoint"))["curve"] for path in (whole, parts)]
    assert curves[0] == curves[1]


def test_weights_without_a_checkpoint_are_only_replaced_on_demand(images: Path, tmp_path: Path) -> None:
    weights = tmp_path / "mine.safetensors"
    weights.write_bytes(b"of another training")
    command = ("train", "unet", "--data", images, "-o", weights, "--steps", "1")
    refused = _run(*command)
    assert refused.exit_code == 1
    assert "mine.safetensors exists, without a checkpoint to go on from; --overwrite replaces it" in refused.output
    assert weights.read_bytes() == b"of another training"
    assert _run(*command, "--overwrite").exit_code == 0
    assert load_file(weights)


def test_a_folder_of_single_slices_is_split_by_files(tmp_path: Path, seen: dict[str, list[torch.Tensor]]) -> None:
    for k, image in enumerate(_blobs(9)):
        np.save(tmp_path / f"{k}.npy", (k + 1) * image)
    result = _run("train", "unet", "--data", tmp_path, "-o", tmp_path / "mine.safetensors", "--steps", "1")
    assert "too few" not in result.output
    assert (len(seen["kept"]), len(seen["held"])) == (8, 1)


def test_one_image_is_too_few(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.pad(np.ones((20, 20)), 10))
    result = _run("train", "unet", "--data", tmp_path / "one.npy", "-o", tmp_path / "mine.safetensors")
    assert result.exit_code == 1
    assert "one image is too few to hold one out; give --validation" in result.output


def test_images_to_select_by_are_not_trained_on(images: Path, tmp_path: Path) -> None:
    (tmp_path / "other").symlink_to(images)
    result = _run(
        *("train", "unet", "--data", images, "--validation", tmp_path / "other"), "-o", tmp_path / "mine.safetensors"
    )
    assert result.exit_code == 1
    assert "other/blobs.npz is among --data and --validation" in result.output


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[torch.Tensor]]:
    """The images that the trainer gets; it fails as torch does when memory is out."""
    given: dict[str, list[torch.Tensor]] = {}

    def run(_: Trainer, corpus: Corpus, validation: Corpus, checkpoint: Path, stop: threading.Event) -> None:
        given.update(kept=corpus.images, held=validation.images)
        raise torch.OutOfMemoryError("CUDA out of memory.\nSee the documentation.")

    monkeypatch.setattr(Trainer, "run", run)
    return given


def test_memory_that_is_out_is_told_in_a_line(
    images: Path, tmp_path: Path, seen: dict[str, list[torch.Tensor]]
) -> None:
    result = _run("train", "unet", "--data", images, "-o", tmp_path / "mine.safetensors")
    assert seen
    assert result.exit_code == 1
    assert result.output.endswith("Error: CUDA out of memory.\n")


def test_the_command_of_the_card_keeps_all_slashes_but_those_of_paths(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = []
    monkeypatch.setattr("pipelines.training.train", lambda job: jobs.append(job) or {})
    weights = tmp_path / "mine.safetensors"
    weights.write_bytes(b"")
    result = _run(
        *("train", "unet", "-o", weights, "--data", images, "--data", images / "blobs.npz", "--overwrite"),
        *("--start", tmp_path / "first.safetensors", "--validation", tmp_path / "images"),
        *("--source", "Blobs; CC0; https://blobs.org/all", "--summary", "T1/T2", "--seed", "2"),
    )
    assert result.exit_code == 0, result.output
    words = shlex.split(jobs[0].command)
    assert words[:3] == ["spinstream", "train", "unet"]
    told = list(pairwise(words))
    for pair in (
        ("--data", "images"),
        ("--data", "blobs.npz"),
        ("--output", "mine.safetensors"),
        ("--start", "first.safetensors"),
        ("--validation", "images"),
        ("--source", "Blobs; CC0; https://blobs.org/all"),
        ("--summary", "T1/T2"),
        ("--seed", "2"),
    ):
        assert pair in told
    assert "--overwrite" in words
    assert len(words) == 3 + 2 * 8 + 1


def test_the_figures_are_those_of_the_weights_as_stored(images: Path, tmp_path: Path) -> None:
    weights = tmp_path / "mine.safetensors"
    assert _run("train", "unet", "--data", images, "-o", weights, "--steps", "3").exit_code == 0
    (corpus,) = read_corpus([images], describe(weights).convention)
    figures = denoising_figures(read_prior(weights), hold_out([corpus])[1])
    assert describe(weights).card.metrics == figures


def test_other_commands_do_without_matplotlib() -> None:
    code = "import sys, pipelines.cli; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.fixture
def noisy_images(tmp_path: Path) -> Path:
    """Complex, with noise of 0.1 per real channel on discs of one."""
    random = np.random.default_rng(1)
    noise = random.standard_normal((40, 40, 40)) + 1j * random.standard_normal((40, 40, 40))
    np.save(tmp_path / "noisy.npy", (_blobs(40) + 0.1 * noise).astype(np.complex64))
    return tmp_path / "noisy.npy"


def test_noisy_complex_images_train_without_clean_ones(noisy_images: Path, tmp_path: Path) -> None:
    weights = tmp_path / "mine.safetensors"
    result = _run("train", "unet", "--objective", "sure", "--data", noisy_images, "-o", weights, "--steps", "2")
    assert result.exit_code == 0, result.output
    assert "estimated error of the denoised images" in result.output
    # It claims no level below the noise that it learnt from.
    assert 0.04 < read_prior(weights).convention.lowest < 0.12


@pytest.mark.parametrize("kind", ["unet", "pogmdm"])
@pytest.mark.parametrize("objective", ["clean", "sure"])
def test_each_kind_learns_from_clean_and_from_noisy_images(
    noisy_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, objective: str
) -> None:
    monkeypatch.setattr("recon_core.training.recipes._CALIBRATION_PATCHES", 1)
    weights = tmp_path / "mine.safetensors"
    result = _run("train", kind, "--objective", objective, "--data", noisy_images, "-o", weights, "--steps", "1")
    assert result.exit_code == 0, result.output
    assert load_prior(str(weights)).denoise(torch.randn(40, 40, dtype=torch.complex64), 0.5).isfinite().all()


def test_noise_beyond_what_a_prior_can_know_is_told_with_its_range(noisy_images: Path, tmp_path: Path) -> None:
    command = ("train", "unet", "--objective", "sure", "--noise", "300", "--data", noisy_images)
    result = _run(*command, "-o", tmp_path / "mine.safetensors")
    assert result.exit_code == 1
    assert "expected images whose noise is 0.01 to 160 of the percentile99 of each, got 2" in result.output
    assert "--noise is in the units of the files" in result.output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--objective", "sure"), "blobs.npz: expected complex images, got magnitudes"),
        (("--objective", "sure", "--noise", "0.1"), "blobs.npz: expected complex images, got magnitudes"),
        (("--noise", "0.1"), "--noise is for --objective sure"),
        (("--key", "heads"), 'blobs.npz: not readable as images: no array "heads"; it holds images'),
        (("--source", "Blobs"), "expected three parts, NAME; LICENCE; CITATION"),
        (("--device", "cuda"), "no CUDA device"),
        (("--seed", "-1"), "0<=x<=9223372036854775807"),
    ],
)
def test_what_cannot_be_trained_is_told(images: Path, tmp_path: Path, arguments: tuple[str, ...], told: str) -> None:
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    result = _run("train", "unet", "--data", images, "-o", tmp_path / "mine.safetensors", "--steps", "1", *arguments)
    assert result.exit_code != 0
    assert told in result.output
    assert not (tmp_path / "mine.safetensors").exists()


def test_other_endings_than_safetensors_are_refused(images: Path, tmp_path: Path) -> None:
    result = _run("train", "unet", "--data", images, "-o", tmp_path / "mine.pth")
    assert result.exit_code == 2
    assert "ends in .safetensors" in result.output


def test_priors_lists_what_is_at_hand_and_prints_cards(images: Path, tmp_path: Path) -> None:
    weights = tmp_path / "mine.safetensors"
    _run("train", "unet", "--data", images, "-o", weights, "--steps", "1", "--summary", "Discs.")
    listed = _run("priors", weights)
    assert listed.exit_code == 0, listed.output
    for told in ("head_unet", "head_pogmdm", "head_unet_sure", "mine.safetensors", "Discs.", "MB"):
        assert told in listed.output
    assert "Learnt from" in _run("priors", "--card", "head_unet").output
    missing = _run("priors", "--card", tmp_path / "none.safetensors")
    assert (missing.exit_code, "cannot read the prior" in missing.output) == (1, True)
    unknown = _run("priors", "--card", "head_unit")
    assert unknown.exit_code == 1
    assert "head_unet" in unknown.output


def test_the_card_of_a_file(images: Path, tmp_path: Path) -> None:
    weights = tmp_path / "mine.safetensors"
    save_prior(weights, UNet(UNetConfig((4,))), Convention("maximum", 0.1, 2), Card("Discs."))
    result = _run("priors", "--card", weights)
    assert result.output.startswith("# mine\n\nDiscs.\n")
    absent = _run("priors", "--card", tmp_path / "absent.safetensors")
    assert absent.exit_code == 1
    assert "absent.safetensors" in absent.output


def test_without_any_priors_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recon_core.priors.library.SHIPPED", tmp_path)
    assert "no prior comes with this installation" in _run("priors").output
    assert (
        "no prior is called 'head' (there are: none; or give a .safetensors file)"
        in _run("priors", "--card", "head").output
    )


def test_files_that_are_no_priors_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"nothing of the kind")
    result = _run("priors", tmp_path / "x.safetensors")
    assert result.exit_code == 1
    assert "x.safetensors is not a prior" in result.output
