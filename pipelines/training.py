"""Training a prior on a user's images: from files to weights with their card and pictures."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import click
import torch
from torch import Tensor

from pipelines.errors import SpinstreamError
from pipelines.training_report import curve_picture, sample_picture
from recon_core.priors.card import Card, Source
from recon_core.priors.prior import Convention
from recon_core.priors.weights import read_prior, save_prior
from recon_core.training.corpus import Corpus, hold_out, joined, read_corpus
from recon_core.training.figures import denoising_figures, stein_figures
from recon_core.training.image_files import image_files
from recon_core.training.recipes import Recipe, pogmdm_recipe, unet_recipe
from recon_core.training.trainer import Interrupted, Objective, Trainer, require_noise

# A prior of noisy images begins at the level of which this share of them has told.
_TELLING = 0.9


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """What to train, on what.

    Args:
        kind: "unet" or "pogmdm".
        size: of the U-Net.
        start: name of the U-Net whose weights to start from; random ones by default.
        data: files and folders of images to train on.
        validation: files and folders of images to select by; by default a twentieth of the training files is held
            out, from their middle and at least one, and of a single file so of its slices (`hold_out`).
        key: the one array to take of npz files.
        objective: "clean" or "sure".
        noise: standard deviation per real channel of the noise in the files, in their units, for "sure"; None
            estimates it.
        steps: of the optimiser; the recipe's own by default.
        seed: of every random draw.
        device: to train on.
        output: the weights' file; card, pictures and checkpoint stand beside it.
        overwrite: replace weights that no checkpoint shows to be of this training.
        summary: one line for the card.
        licence: of the weights, for the card.
        sources: of the images, for the card.
        command: that was given, for the card.
    """

    kind: str
    data: tuple[Path, ...]
    output: Path
    overwrite: bool = False
    size: str = "small"
    start: str | None = None
    validation: tuple[Path, ...] = ()
    key: str | None = None
    objective: Objective = "clean"
    noise: float | None = None
    steps: int | None = None
    seed: int = 1
    device: torch.device | str = "cpu"
    summary: str = "A prior of its user's own images."
    licence: str = "not stated"
    sources: tuple[Source, ...] = ()
    command: str = ""


class TrainingStopped(click.ClickException):
    """Ctrl-C; the message says how to go on."""

    exit_code = 128 + signal.SIGINT

    def show(self, file: IO[Any] | None = None) -> None:
        """Without "Error": the user asked for it."""
        click.echo(self.format_message(), file, err=True)


def train(job: TrainingJob) -> dict[str, float]:
    """Trains, resuming where a checkpoint stands, and writes weights, card and pictures. From the main thread.

    Returns:
        The figures of the card.

    Raises:
        SpinstreamError: images, settings or checkpoint cannot be used, the output exists, or memory is out; says which.
        TrainingStopped: Ctrl-C during the training, which has written a checkpoint.
    """
    try:
        return _train(job)
    except (ValueError, OSError) as error:
        raise SpinstreamError(str(error)) from error
    except RuntimeError as error:  # torch's, whose first line says what happened
        raise SpinstreamError(str(error).partition("\n")[0]) from error


def _train(job: TrainingJob) -> dict[str, float]:
    checkpoint = _beside(job.output, ".checkpoint")
    if job.output.exists() and not (checkpoint.exists() or job.overwrite):
        raise ValueError(f"{job.output} exists, without a checkpoint to go on from; --overwrite replaces it")
    recipe = unet_recipe(job.size, job.seed, job.start) if job.kind == "unet" else pogmdm_recipe(job.seed)
    settings = replace(recipe.settings, objective=job.objective, steps=job.steps or recipe.settings.steps)
    corpus, validation = _images(job, recipe)
    noise = torch.cat([corpus.noise, validation.noise])
    if job.objective == "sure":
        require_noise(noise, recipe.convention)
    recipe.network.to(job.device)
    trainer = Trainer(recipe.network, recipe.optimiser, _above(0.0, job, recipe, noise), settings, recipe.constrain)
    job.output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _interrupts() as stop:
            trainer.run(corpus, validation, checkpoint, stop=stop)
    except Interrupted as reason:
        raise TrainingStopped(f"{reason}; the same command goes on from {checkpoint}") from None
    if recipe.finish is not None:
        recipe.finish(trainer.averaged, validation)
    with TemporaryDirectory(prefix=f".{job.output.stem}", dir=job.output.parent) as folder:
        convention = _above(_TELLING, job, recipe, noise)
        figures = _write(Path(folder) / job.output.name, job, convention, settings.steps, trainer, validation)
        for file in Path(folder).iterdir():
            file.replace(job.output.with_name(file.name))
    return figures


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Set by the first Ctrl-C, which lets the step in work be finished; the second one ends everything at once."""
    stop = threading.Event()

    def first(*_: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, first)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _above(share: float, job: TrainingJob, recipe: Recipe, noise: Tensor) -> Convention:
    """From the level that the noise of this share of the images does not exceed: below theirs they tell nothing."""
    if job.objective == "clean":
        return recipe.convention
    told = float(noise.quantile(share))
    return replace(recipe.convention, lowest=max(told, recipe.convention.lowest))


def _write(
    output: Path, job: TrainingJob, convention: Convention, steps: int, trainer: Trainer, validation: Corpus
) -> dict[str, float]:
    """Weights, card and pictures; the figures are those of the weights as stored."""
    card = Card(
        summary=job.summary,
        licence=job.licence,
        sources=job.sources,
        objective=job.objective,
        steps=steps,
        seed=job.seed,
        command=job.command,
        denoiser=f"{job.kind}; noise {convention.lowest:g} to {convention.highest:g} of the {convention.scale}",
    )
    half = job.kind == "unet"  # the few numbers of a pogmdm are worth their full precision
    save_prior(output, trainer.averaged, convention, card, half)
    prior = read_prior(output, job.device)
    figures = (denoising_figures if job.objective == "clean" else stein_figures)(prior, validation, job.device)
    save_prior(output, trainer.averaged, convention, replace(card, metrics=figures), half)
    curve_picture(trainer.curve, _beside(output, "_curve.png"))
    sample_picture(prior, validation, job.device, _beside(output, "_samples.png"))
    return figures


def _images(job: TrainingJob, recipe: Recipe) -> tuple[Corpus, Corpus]:
    """To train on, and to select by."""
    noise = job.noise if job.objective == "sure" else 0.0
    if not job.validation:
        kept, held = hold_out(read_corpus(job.data, recipe.convention, job.key, noise))
        if not kept.images:
            raise ValueError("one image is too few to hold one out; give --validation")
        return kept, held
    seen = {path.resolve() for path in image_files(job.data)}
    both = [path for path in image_files(job.validation) if path.resolve() in seen]
    if both:
        raise ValueError(f"{both[0]} is among --data and --validation; expected images that are not trained on")
    kept, held = (joined(read_corpus(paths, recipe.convention, job.key, noise)) for paths in (job.data, job.validation))
    return kept, held


def _beside(weights: Path, ending: str) -> Path:
    return weights.with_name(weights.stem + ending)
