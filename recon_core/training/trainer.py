"""The training loop: resumable to the bit on one device and thread count, with an average of the weights for use."""

from __future__ import annotations

import copy
import math
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn
from tqdm import tqdm

from recon_core.priors.checkpoint import load_tensors, read_checkpoint
from recon_core.priors.prior import Convention
from recon_core.training.augmentation import KEEPS_NOISE, Augmentation, patches
from recon_core.training.corpus import Corpus
from recon_core.training.objectives import clean_loss, sure_loss

Objective = Literal["clean", "sure"]


@dataclass(frozen=True)
class Settings:
    """How a prior is trained.

    Args:
        objective: "clean" images, or "sure": noisy images whose noise level the corpus knows.
        steps: of the optimiser.
        rate: greatest learning rate; it rises over the first hundredth of the steps and then falls as a cosine.
        edges: patch sizes in pixels, drawn at random for every step.
        pixels: about how many a batch holds.
        levels: how many different noise levels a batch holds; one per image by default.
        average: decay per step of the running average of the weights.
        seed: of every random draw.
        augmentation: of the images.
        start: name of the prior whose weights the network starts from.
    """

    objective: Objective = "clean"
    steps: int = 4000
    rate: float = 1e-3
    edges: tuple[int, ...] = (64, 96, 128)
    pixels: int = 8 * 96 * 96
    levels: int | None = None
    average: float = 0.999
    seed: int = 1
    augmentation: Augmentation = field(default_factory=Augmentation)
    start: str | None = None


@dataclass
class Curve:
    """What the training reported on its way: at `step`, the mean loss since the last entry and the validation loss."""

    step: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)


class Interrupted(Exception):
    """A training that was asked to stop, and can go on from its checkpoint."""


class Trainer:
    """One training, from the first step or from where a checkpoint left it.

    Args:
        network: the denoiser to train, on its device.
        optimiser: of its parameters, at the learning rate 1: the trainer sets the rate.
        convention: gives the range of noise levels.
        settings: of the training.
        constrain: called with the network after every step, to bring parameters back to where they belong.
    """

    def __init__(
        self,
        network: nn.Module,
        optimiser: torch.optim.Optimizer,
        convention: Convention,
        settings: Settings,
        constrain: Callable[[nn.Module], None] | None = None,
    ) -> None:
        self.network = network
        self.averaged = copy.deepcopy(network).requires_grad_(False)
        self.curve = Curve()
        self.step = 0
        self._optimiser = optimiser
        self._convention = convention
        self._settings = settings
        self._constrain = constrain
        self._shares = [float(group["lr"]) for group in optimiser.param_groups]
        self._generator = Generator().manual_seed(settings.seed)
        # Since the last entry of the curve.
        self._losses: list[float] = []

    def run(
        self,
        corpus: Corpus,
        validation: Corpus,
        checkpoint: Path,
        every: int = 250,
        stop: threading.Event | None = None,
    ) -> None:
        """Trains to the end.

        Args:
            corpus: to train on.
            validation: images that it never trains on.
            checkpoint: file that is rewritten as it goes; an existing one is resumed.
            every: steps between two checkpoints with their entries of the curve.
            stop: once set, the step in work is finished, and a checkpoint is written.

        Raises:
            Interrupted: `stop` was set before the end.
            ValueError: there are no images, or noisy ones whose noise is not within the convention; the checkpoint
                belongs to another training; or loss or gradient are no longer finite.
        """
        self._require_images(corpus, validation)
        told = self._told(corpus, validation)
        if checkpoint.exists():
            self._load(checkpoint, told)
        held_out = self._validation_batch(validation)
        with tqdm(total=self._settings.steps, initial=self.step, desc="train", unit="step") as bar:
            while self.step < self._settings.steps:
                self._losses.append(self._advance(corpus))
                bar.update()
                if self.step % every == 0 or self.step == self._settings.steps:
                    self._note(sum(self._losses) / len(self._losses), held_out)
                    self._losses.clear()
                    self._save(checkpoint, told)
                    bar.set_postfix(loss=f"{self.curve.loss[-1]:.4f}", validation=f"{self.curve.validation[-1]:.4f}")
                elif stop is not None and stop.is_set():
                    self._save(checkpoint, told)
                if stop is not None and stop.is_set() and self.step < self._settings.steps:
                    raise Interrupted(f"stopped after step {self.step} of {self._settings.steps}")

    def _require_images(self, corpus: Corpus, validation: Corpus) -> None:
        if not (len(corpus) and len(validation)):
            raise ValueError(f"expected images to train on and to validate by, got {len(corpus)} and {len(validation)}")
        if self._settings.objective == "sure":
            require_noise(torch.cat([corpus.noise, validation.noise]), self._convention)

    def _advance(self, corpus: Corpus) -> float:
        """One step of the optimiser; the loss before it."""
        settings = self._settings
        for group, share in zip(self._optimiser.param_groups, self._shares, strict=True):
            group["lr"] = share * settings.rate * schedule(self.step / settings.steps)
        loss = self._loss(self.network, *self._batch(corpus), self._generator)
        self._optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        length = nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        if not bool(torch.isfinite(loss) & torch.isfinite(length)):
            raise ValueError(f"the training diverged: loss {loss.item()}, gradient {length.item()} at step {self.step}")
        self._optimiser.step()
        if self._constrain is not None:
            self._constrain(self.network)
        self._average()
        self.step += 1
        return float(loss.detach())

    def _batch(self, corpus: Corpus) -> tuple[Tensor, Tensor, Tensor]:
        """Patches, the noise in them, and the noise levels to train at."""
        settings, generator = self._settings, self._generator
        edge = settings.edges[int(torch.randint(len(settings.edges), (), generator=generator))]
        count = max(1, round(settings.pixels / edge**2))
        augmentation = settings.augmentation if settings.objective == "clean" else KEEPS_NOISE
        images, noise = patches(corpus, count, edge, augmentation, generator)
        levels = noise_levels(settings.levels or count, self._convention, generator)
        return images, noise, levels.repeat_interleave(-(-count // len(levels)))[:count]

    def _loss(self, network: nn.Module, images: Tensor, noise: Tensor, levels: Tensor, generator: Generator) -> Tensor:
        device = next(network.parameters()).device
        images, noise, levels = images.to(device), noise.to(device), levels.to(device)
        if self._settings.objective == "clean":
            return clean_loss(network, images, levels, generator)  # type: ignore[arg-type]
        return sure_loss(network, images, noise, levels, generator)  # type: ignore[arg-type]

    def _average(self) -> None:
        """The running average starts short, so that it forgets the first weights."""
        decay = min(self._settings.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for kept, new in zip(self.averaged.parameters(), self.network.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)
        if self._constrain is not None:
            self._constrain(self.averaged)

    def _validation_batch(self, validation: Corpus, batches: int = 8) -> list[tuple[Tensor, Tensor, Tensor]]:
        """The same held-out patches and levels throughout, whatever the training drew."""
        state = self._generator.get_state()
        self._generator.manual_seed(self._settings.seed + 1)
        held_out = [self._batch(validation) for _ in range(batches)]
        self._generator.set_state(state)
        return held_out

    def _note(self, loss: float, held_out: list[tuple[Tensor, Tensor, Tensor]]) -> None:
        generator = Generator().manual_seed(self._settings.seed + 2)
        with torch.no_grad():
            losses = [float(self._loss(self.averaged, *batch, generator)) for batch in held_out]
        self.curve.step.append(self.step)
        self.curve.loss.append(loss)
        self.curve.validation.append(sum(losses) / len(losses))

    def _told(self, corpus: Corpus, validation: Corpus) -> dict[str, str]:
        """What a checkpoint must have in common with this training to be resumed by it."""
        return {
            **{name: repr(value) for name, value in vars(self._settings).items()},
            "convention": repr(self._convention),
            "network": repr(getattr(self.network, "config", type(self.network).__name__)),
            "training images": _told_images(corpus),
            "validation images": _told_images(validation),
        }

    def _save(self, path: Path, told: dict[str, str]) -> None:
        state: dict[str, Any] = {
            "told": told,
            "step": self.step,
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "generator": self._generator.get_state(),
            "curve": vars(self.curve),
            "losses": self._losses,
        }
        partial = path.with_name(path.name + ".part")
        torch.save(state, partial)
        partial.replace(path)

    def _load(self, path: Path, told: dict[str, str]) -> None:
        state = read_checkpoint(path)
        if not isinstance(state, dict) or not isinstance(state.get("told"), dict):
            raise ValueError(f"{path} is not the checkpoint of a training, expected what this program wrote")
        theirs = state["told"]
        others = [
            f"{name} {theirs.get(name, 'not told')}, not {ours}"
            for name, ours in told.items()
            if theirs.get(name) != ours
        ]
        if others:
            raise ValueError(
                f"{path} is of another training: {'; '.join(others)}. Delete it to start anew, or give another output"
            )
        load_tensors(self.network, state["network"], str(path))
        load_tensors(self.averaged, state["averaged"], str(path))
        self._optimiser.load_state_dict(state["optimiser"])
        self._generator.set_state(state["generator"])
        self.curve = Curve(**state["curve"])
        # Checkpoints of earlier versions lie at entries of the curve.
        self._losses = state.get("losses", [])
        self.step = state["step"]


def require_noise(noise: Tensor, convention: Convention) -> None:
    """That a prior of a convention can learn from images with this noise in them, `[n]`.

    Raises:
        ValueError: some of it is weaker or stronger than the levels of the convention.
    """
    lowest, highest = float(noise.min()), float(noise.max())
    if not (convention.lowest <= lowest and highest <= convention.highest):
        raise ValueError(
            f"expected images whose noise is {convention.lowest:g} to {convention.highest:g} of the "
            f"{convention.scale} of each, got {lowest:g} to {highest:g}; --noise is in the units of the files"
        )


def _told_images(corpus: Corpus) -> str:
    """How many, and a checksum."""
    total = 0
    for image in corpus.images:
        total = zlib.crc32(image.contiguous().numpy().tobytes(), total)
    return f"{len(corpus)} with checksum {zlib.crc32(corpus.noise.numpy().tobytes(), total):08x}"


def schedule(progress: float, warm_up: float = 0.01) -> float:
    """Share of the learning rate at a share of the steps."""
    return min(1.0, (progress + 1e-4) / warm_up) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def noise_levels(count: int, convention: Convention, generator: Generator) -> Tensor:
    """Random noise levels of a convention's range, `[count]`.

    Most lie about 0.1, where images are decided, or as far above the lowest level as they would lie below it; the
    others anywhere, evenly on the logarithmic scale.
    """
    low, high = math.log(convention.lowest), math.log(convention.highest)
    middle = low + (-2.5 + 1.4 * torch.randn(count, generator=generator) - low).abs()
    anywhere = low + (high - low) * torch.rand(count, generator=generator)
    often = torch.rand(count, generator=generator) < 0.7
    return torch.where(often, middle, anywhere).clamp(low, high).exp()
