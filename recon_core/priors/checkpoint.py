"""Other people's checkpoints: read without running anything that stands in them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

# How files begin that `torch.save` writes: a zip archive, or (before torch 1.6) a pickle with a magic number.
_BEGINNINGS = (b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
# What an unpickler may meet in a file whose bytes are not what they were.
_DAMAGE = (OSError, RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError, AssertionError)


def read_checkpoint(path: str | Path) -> object:
    """What `torch.save` wrote, on the CPU: tensors, numbers, text, and lists and dictionaries of them.

    A checkpoint is a pickle, and a pickle may run anything; only what torch knows to be data is let in.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a checkpoint, is damaged, or holds other Python objects than data.
    """
    with Path(path).open("rb") as file:
        if not file.read(max(map(len, _BEGINNINGS))).startswith(_BEGINNINGS):
            raise ValueError(f"{path} is not a checkpoint: expected a file that torch.save wrote")
    try:
        loaded: object = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        culprit = re.search(r"GLOBAL (\w[\w.]*)", str(error))
        raise ValueError(
            f"{path} holds pickled Python objects or code"
            + (f" ({culprit[1]})" if culprit else "")
            + " and was not loaded; expected tensors, numbers and text in lists and dictionaries. "
            "Who trusts the file can load it and save its state dict alone"
        ) from None
    except _DAMAGE as error:
        reason = (str(error) or "it ends early").splitlines()[0]
        raise ValueError(f"{path} is damaged, or no checkpoint: {reason}") from error
    return loaded


def as_tensors(found: object, what: str) -> dict[str, Tensor]:
    """A state dict, checked to be one and finite; the `module.` of `DataParallel` is taken off.

    Args:
        found: what should be a state dict.
        what: what to call it in messages: the file, and where in it.

    Raises:
        ValueError: it is no dictionary of named tensors, or a tensor is not finite.
    """
    if not isinstance(found, Mapping) or not found:
        raise ValueError(f"{what}: expected a state dict (names to tensors), got {_told(found)}")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(f"{what}: expected a state dict (names to tensors), got {name!r}: {_told(tensor)}")
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{what}: {name} is not finite")
    return {name.removeprefix("module."): tensor for name, tensor in found.items()}


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Puts `tensors` into `module`, which must need exactly these names and shapes.

    Raises:
        ValueError: names or shapes differ; the message gives the first of each.
    """
    needed = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
    missing, strange = sorted(needed.keys() - tensors.keys()), sorted(tensors.keys() - needed.keys())
    if missing or strange:
        raise ValueError(
            f"{what}: expected the {len(needed)} tensors of {type(module).__name__}, got {len(tensors)}"
            + (f"; {len(missing)} missing, such as {missing[0]}" if missing else "")
            + (f"; {len(strange)} unknown, such as {strange[0]}" if strange else "")
        )
    for name, shape in needed.items():
        if list(tensors[name].shape) != shape:
            raise ValueError(f"{what}: expected {name} {shape}, got {list(tensors[name].shape)}")
    module.load_state_dict(dict(tensors))


def _told(thing: object) -> str:
    return f"a tensor {list(thing.shape)}" if isinstance(thing, Tensor) else type(thing).__name__
