"""Priors by name: those that come with the package, a user's own, and the papers' published checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch

from recon_core.priors.ncsnv2 import load_ncsnv2
from recon_core.priors.pogmdm.published import load_pogmdm
from recon_core.priors.prior import Prior
from recon_core.priors.weights import read_prior

SHIPPED = Path(__file__).parent / "shipped"

_PUBLISHED = {"ncsnv2": load_ncsnv2, "pogmdm": load_pogmdm}


def shipped_priors() -> dict[str, Path]:
    """The priors that come with the package: names and files."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.safetensors"))}


def load_prior(name: str, device: torch.device | str = "cpu") -> Prior:
    """A prior by name.

    Args:
        name: of a prior that comes with the package (`shipped_priors`); the path of a `.safetensors` file that
            `spinstream train` wrote; or a published checkpoint, `ncsnv2:/path/checkpoint.pth` (csgm-mri-langevin,
            SMRD) or `pogmdm:/path/state_final.pth`.
        device: to compute on.

    Raises:
        OSError: the file cannot be read.
        ValueError: there is no such prior, or the file does not hold one.
    """
    kind, colon, path = name.partition(":")
    if colon and kind in _PUBLISHED:
        return _PUBLISHED[kind](path, device)
    shipped = shipped_priors()
    if name in shipped:
        return read_prior(shipped[name], device)
    if name.endswith(".safetensors"):
        return read_prior(Path(name), device)
    file = name if name.endswith(".pth") and not colon else "FILE"
    raise ValueError(
        f"no prior is called {name!r}; there are {', '.join(shipped) or 'none'}, or give a .safetensors file, "
        f"or {' or '.join(f'{kind}:{file}' for kind in _PUBLISHED)} for a published checkpoint"
    )
