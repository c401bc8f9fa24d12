"""Training a prior on a user's images: from files to weights with their card and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pipelines.errors import SpinstreamError
from pipelines.training_report import curve_picture, sample_picture
from recon_core.priors.card import Card, Source
from recon_core.priors.prior import Prior
from recon_core.priors.weights import save_prior
from recon_core.training.corpus import Corpus, read_corpus
from recon_core.training.figures import denoising_figures, stein_figures
from recon_core.training.recipes import Recipe, pogmdm_recipe, unet_recipe
from recon_core.training.trainer import Objective, Trainer

# Of each file, when there are no validation files.
_HELD_OUT = 0.05


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """What to train, on what.

    Args:
        kind: "unet" or "pogmdm".
        size: of the U-Net.
        start: name of the U-Net whose weights to start from; random ones by default.
        data: files and folders of images to train on.
        validation: files and folders of images to select by; the last twentieth of each training file by default.
        key: the one array to take of npz files.
        objective: "clean" or "sure".
        noise: standard deviation per real channel of the noise in the files, in their units, for "sure"; None
            estimates it.
        steps: of the optimiser; the recipe's own by default.
        seed: of every random draw.
        device: to train on.
        output: the weights' file; card, pictures and checkpoint stand beside it.
        summary: one line for the card.
        licence: of the weights, for the card.
        sources: of the images, for the card.
        command: that was given, for the card.
    """

    kind: str
    data: tuple[Path, ...]
    output: Path
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


def train(job: TrainingJob) -> dict[str, float]:
    """Trains, resuming where a checkpoint stands, and writes weights, card and pictures.

    Returns:
        The figures of the card.

    Raises:
        SpinstreamError: images, settings or checkpoint cannot be used; says which.
    """
    try:
        return _train(job)
    except (ValueError, OSError) as error:
        raise SpinstreamError(str(error)) from error


def _train(job: TrainingJob) -> dict[str, float]:
    recipe = unet_recipe(job.size, job.seed, job.start) if job.kind == "unet" else pogmdm_recipe(job.seed)
    settings = replace(recipe.settings, objective=job.objective, steps=job.steps or recipe.settings.steps)
    corpus, validation = _images(job, recipe)
    recipe.network.to(job.device)
    trainer = Trainer(recipe.network, recipe.optimiser, recipe.convention, settings, recipe.constrain)
    job.output.parent.mkdir(parents=True, exist_ok=True)
    trainer.run(corpus, validation, _beside(job.output, ".checkpoint"))
    network = trainer.averaged.eval()
    prior = Prior(network, recipe.convention, job.output.stem)
    told = denoising_figures if job.objective == "clean" else stein_figures
    figures = told(prior, validation, job.device)
    card = Card(
        summary=job.summary,
        licence=job.licence,
        sources=job.sources,
        objective=job.objective,
        steps=settings.steps,
        seed=job.seed,
        command=job.command,
        metrics=figures,
    )
    # The few numbers of a pogmdm are worth their full precision.
    save_prior(job.output, network, recipe.convention, card, half=job.kind == "unet")
    curve_picture(trainer.curve, _beside(job.output, "_curve.png"))
    sample_picture(prior, validation, job.device, _beside(job.output, "_samples.png"))
    return figures


def _images(job: TrainingJob, recipe: Recipe) -> tuple[Corpus, Corpus]:
    """To train on, and to select by."""
    noise = job.noise if job.objective == "sure" else 0.0
    read = [read_corpus(paths, recipe.convention, job.key, noise) for paths in (job.data, job.validation) if paths]
    if job.validation:
        return _joined(read[0]), _joined(read[1])
    pairs = [corpus.split(_HELD_OUT) for corpus in read[0]]
    kept, held = _joined([kept for kept, _ in pairs]), _joined([held for _, held in pairs])
    if not held.images:
        raise ValueError(f"{len(kept)} images are too few to hold one out; give --validation")
    return kept, held


def _joined(corpora: Sequence[Corpus]) -> Corpus:
    return sum(corpora[1:], corpora[0])


def _beside(weights: Path, ending: str) -> Path:
    return weights.with_name(weights.stem + ending)
