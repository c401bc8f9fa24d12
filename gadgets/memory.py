"""What becomes of frames that do not fit into the memory of a GPU."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import torch

from gadgets.frame import Frame
from gadgets.gadget import Gadget

log = logging.getLogger("spinstream")

CPU = torch.device("cpu")

TELLING = "can't allocate memory", "ALLOC_FAILED"
"""Words in the plain RuntimeError that PyTorch raises for the CPU, and for libraries of CUDA."""


def out_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice, on whatever device."""
    if isinstance(error, RuntimeError) and any(words in str(error) for words in TELLING):
        return True
    return isinstance(error, (MemoryError, torch.OutOfMemoryError))


def begun(results: Iterator[object], device: torch.device) -> Iterator[object] | None:
    """The same items, or None where the memory of a GPU does not suffice for the first of them.

    What that attempt held there is given back.
    """
    try:
        first = list(islice(results, 1))
    except Exception as error:
        if device.type == "cpu" or not out_of_memory(error):
            raise
        log.warning("%s", str(error))  # a record that held the error would hold what was allocated
    else:
        return chain(first, results)
    torch.cuda.empty_cache()  # only now that the error, and what it holds, is gone
    return None


def taken(gadget: Gadget[Any], item: object) -> Iterator[object]:
    """What a gadget yields for an item; on the CPU for a frame that does not fit into the memory of a GPU."""
    if not isinstance(item, Frame) or not gadget.per_frame:
        return gadget.take(item)
    untouched = replace(item, history=[*item.history])
    results = begun(gadget.take(item), item.device)
    return taken_on_the_cpu(gadget, untouched) if results is None else results


def taken_on_the_cpu(gadget: Gadget[Frame], frame: Frame) -> Iterator[object]:
    """What a gadget of the same settings yields for a frame there; this is told, and stands in the history.

    The frame goes back to its device for the gadgets that follow.
    """
    name, device = type(gadget).__name__, frame.device
    gadget.session.tell(f"{frame.label}: {name} continues on the CPU, since the GPU's memory did not suffice")
    other = type(gadget)(**{name: getattr(gadget, name) for name in gadget.properties()})
    other.open(replace(gadget.session, device=CPU, history=[]))
    moved = frame.on(CPU)
    moved.history.append(f"{name}: on the CPU, since the GPU's memory did not suffice")
    for item in chain(other.take(moved), other.finish()):
        yield item.on(device) if isinstance(item, Frame) else item
