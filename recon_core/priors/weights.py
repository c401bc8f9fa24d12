"""Priors in files: safetensors, with convention, configuration and model card in the same file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from recon_core.priors.card import Card
from recon_core.priors.checkpoint import as_tensors, load_tensors
from recon_core.priors.pogmdm.model import PoGMDM, PoGMDMConfig
from recon_core.priors.prior import Convention, Prior
from recon_core.priors.unet import UNet, UNetConfig

FORMAT = "spinstream prior 1"
_ENTRIES = {"card", "config", "convention", "kind"}

Network = UNet | PoGMDM
_KINDS: dict[str, Callable[..., Network]] = {
    "unet": lambda **config: UNet(UNetConfig(**config)),
    "pogmdm": lambda **config: PoGMDM(PoGMDMConfig(**config)),
}


@dataclass(frozen=True)
class Description:
    """What a file of weights says of itself.

    Args:
        kind: of the network, "unet" or "pogmdm".
        config: what its constructor takes.
        convention: how images must be scaled for it.
        card: for the reader.
    """

    kind: str
    config: dict[str, Any]
    convention: Convention
    card: Card


def save_prior(path: Path, network: nn.Module, convention: Convention, card: Card, half: bool = False) -> None:
    """Writes a trained prior, and its card as a page beside it.

    Args:
        path: of the file, `.safetensors`.
        network: trained.
        convention: that it was trained under.
        card: its description.
        half: whether to store the weights in half precision, in half the space.

    Raises:
        ValueError: a weight is not finite, or the network is of no kind that `read_prior` knows.
    """
    if not isinstance(network, Network):
        raise ValueError(f"expected a network of the kinds {', '.join(_KINDS)}, got a {type(network).__name__}")
    tensors = network.state_dict()
    stored = {name: (tensor.half() if half else tensor).contiguous() for name, tensor in tensors.items()}
    metadata = {
        "format": FORMAT,
        "kind": type(network).__name__.lower(),
        "config": json.dumps(asdict(network.config)),
        "convention": json.dumps(asdict(convention)),
        "card": card.to_json(),
    }
    save_file(as_tensors(stored, str(path)), path, metadata=metadata)
    path.with_suffix(".md").write_text(card.to_markdown(path.stem))


def describe(path: Path) -> Description:
    """What a file of weights says of itself, without reading the weights.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no safetensors file, or not of this program.
    """
    path.open("rb").close()  # the reader's own errors do not name the file
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a prior: expected a safetensors file ({error}); published checkpoints are named "
            f'"ncsnv2:{path}" or "pogmdm:{path}"'
        ) from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f'{path} is not a prior: expected the format "{FORMAT}", got {metadata.get("format")!r}')
    if not metadata.keys() >= _ENTRIES:
        raise ValueError(f"{path}: expected a description with {_listed(_ENTRIES)}, got {_listed(metadata)}")
    try:
        kind, config = metadata["kind"], json.loads(metadata["config"])
        # Older files do not tell that their training turned images by any phase, as all training here does.
        convention = Convention(**{"any_phase": True} | json.loads(metadata["convention"]))
        return Description(kind, config, convention, Card.from_json(metadata["card"]))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: its description is damaged: {error}") from error


def read_prior(path: Path, device: torch.device | str = "cpu") -> Prior:
    """A prior from its file.

    Args:
        path: of a file that `save_prior` wrote.
        device: to compute on.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a prior, or its weights do not fit its description or are not finite.
    """
    told = describe(path)
    network = _build(told, path)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118  # no mapping
    load_tensors(network, as_tensors(tensors, str(path)), str(path))
    return Prior(_ready(network, device), told.convention, path.stem)


def _build(told: Description, path: Path) -> Network:
    if told.kind not in _KINDS:
        raise ValueError(f"{path}: expected a prior of the kinds {', '.join(_KINDS)}, got {told.kind!r}")
    try:
        with torch.random.fork_rng(devices=[]):
            return _KINDS[told.kind](**told.config)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: its configuration does not describe a {told.kind}: {error}") from error


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _ready(network: nn.Module, device: torch.device | str) -> nn.Module:
    return network.to(device).eval().requires_grad_(False)
