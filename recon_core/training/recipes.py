"""How each kind of prior is trained: network, optimiser, convention, and what is known to work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from recon_core.priors.library import load_prior
from recon_core.priors.pogmdm.model import PoGMDM, PoGMDMConfig
from recon_core.priors.prior import Convention
from recon_core.priors.unet import SIZES, UNet
from recon_core.training.adabelief import AdaBelief
from recon_core.training.corpus import Corpus
from recon_core.training.figures import held_out
from recon_core.training.trainer import Settings

_CALIBRATION_PATCHES = 24


@dataclass(frozen=True)
class Recipe:
    """A prior that is ready to be trained.

    Args:
        network: with its first, random weights.
        optimiser: of its parameters, at the learning rate 1.
        convention: to train under.
        settings: that suit it.
        constrain: brings parameters back to where they belong, after every step.
        finish: what the trained network learns at the end from the images that it is validated by.
    """

    network: UNet | PoGMDM
    optimiser: torch.optim.Optimizer
    convention: Convention
    settings: Settings
    constrain: Callable[[nn.Module], None] | None = None
    finish: Callable[[nn.Module, Corpus], None] | None = None


def unet_recipe(size: str, seed: int, start: str | None = None) -> Recipe:
    """The U-Net, over the levels of the variance preserving diffusions (0.01 to 157 of the unit image).

    Args:
        size: "small" or "large".
        seed: of the first weights.
        start: name of a U-Net whose weights to start from (`load_prior`). Blocks that it lacks start as the identity,
            so that a large network may start from a small one.

    Raises:
        ValueError: no such size or prior, or the prior is of another architecture.
    """
    if size not in SIZES:
        raise ValueError(f"expected the size {' or '.join(SIZES)}, got {size!r}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = UNet(SIZES[size])
    if start is not None:
        _start_from(network, start)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1.0, weight_decay=0.0)
    settings = Settings(seed=seed, rate=1e-3 if start is None else 5e-4, start=start)
    return Recipe(network, optimiser, Convention("percentile99", 0.01, 160.0, any_phase=True), settings)


def _start_from(network: UNet, start: str) -> None:
    known = load_prior(start).denoiser
    if not isinstance(known, UNet):
        raise ValueError(f"cannot start from {start}: expected a U-Net, got a {type(known).__name__}")
    new, old = network.state_dict(), known.state_dict()
    for name, tensor in old.items():
        if name not in new or new[name].shape != tensor.shape:
            raise ValueError(
                f"cannot start from {start}: {name} {list(tensor.shape)} has no place in a {network.config}"
            )
    network.load_state_dict({**new, **old})


def pogmdm_recipe(seed: int) -> Recipe:
    """The product of Gaussian mixtures, with the optimiser, the constraints and the relative rates of paper 003.

    The range of noise reaches to where the sampler of that paper starts. Levels are shared within a batch, because
    each costs a table; patches are large, because the filters wrap around; the rate is fifty times that of the paper,
    for a fiftieth of its steps.

    Args:
        seed: of the training; the first weights are not random.
    """
    network = PoGMDM(PoGMDMConfig())
    optimiser = AdaBelief(network.parameter_groups())
    settings = Settings(seed=seed, rate=5e-3, steps=2000, levels=2, edges=(128, 192))
    convention = Convention("maximum", 0.005, 10.0, any_phase=True)
    return Recipe(network, optimiser, convention, settings, _project, _calibrate)


def _project(network: nn.Module) -> None:
    if isinstance(network, PoGMDM):
        network.project_()


def _calibrate(network: nn.Module, validation: Corpus) -> None:
    if isinstance(network, PoGMDM):
        images, noise = held_out(validation, _CALIBRATION_PATCHES, edge=512)
        channels = torch.view_as_real(images).movedim(-1, 1).to(network.gain.device)
        network.calibrate_(channels, noise.to(channels), torch.Generator().manual_seed(0))
