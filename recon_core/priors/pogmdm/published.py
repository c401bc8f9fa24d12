"""The published weights of PoGMDM."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from recon_core.priors.checkpoint import as_tensors, read_checkpoint
from recon_core.priors.pogmdm.experts import COMPONENTS, SPREAD, means
from recon_core.priors.pogmdm.model import PoGMDM, PoGMDMConfig
from recon_core.priors.pogmdm.shearlets import FILTERS
from recon_core.priors.prior import Convention, Prior

# The low-pass filter has a row too, which its factor of zero takes out.
_ROWS = FILTERS + 1
_SHAPES = {
    "w.w": (_ROWS, COMPONENTS // 2 + 1),
    "lamda": (_ROWS,),
    "h": (9,),
    "P": (17, 17),
    "mus": (COMPONENTS,),
    "sigma_0": (_ROWS,),
}


def load_pogmdm(path: str | Path, device: torch.device | str = "cpu") -> Prior:
    """The prior of a published state dict (`state_final.pth` of the shearlet model, Zach et al. 2024).

    It learnt noise levels up to 0.4 of images of maximum one; it does nothing to the mean of an image.

    Args:
        path: of the state dict.
        device: to compute on.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no state dict of this model.
    """
    tensors = as_tensors(read_checkpoint(path), str(path))
    _check(tensors, str(path))
    model = PoGMDM(PoGMDMConfig("published"))
    learnt = {"weights": "w.w", "gain": "lamda", "low_pass": "h", "fan": "P"}
    numbers = {name: tensors[key][: len(model.get_parameter(name))] for name, key in learnt.items()}
    model.load_state_dict(model.state_dict() | numbers)
    model.to(device).eval().requires_grad_(False)
    return Prior(model, Convention("maximum", lowest=0.005, highest=0.4), f"pogmdm:{path}")


def _check(tensors: dict[str, Tensor], path: str) -> None:
    if tensors.keys() != _SHAPES.keys():
        raise ValueError(f"{path}: expected a PoGMDM state dict with {', '.join(_SHAPES)}, got {', '.join(tensors)}")
    for name, shape in _SHAPES.items():
        if tuple(tensors[name].shape) != shape:
            raise ValueError(f"{path}: expected {name} {list(shape)}, got {list(tensors[name].shape)}")
    given = {"mus": means(tensors["mus"]), "sigma_0": torch.tensor(SPREAD), "lamda": torch.tensor(0.0)}
    found = {"mus": tensors["mus"], "sigma_0": tensors["sigma_0"], "lamda": tensors["lamda"][-1]}
    for name, wanted in given.items():
        if not torch.allclose(found[name], wanted.to(found[name]), atol=1e-6):
            raise ValueError(
                f"{path}: {name} differs: expected {COMPONENTS} means from -0.5 to 0.5, their distance as spread, and "
                "a factor of zero for the low-pass row"
            )
