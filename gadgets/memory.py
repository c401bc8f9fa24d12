"""What becomes of frames that do not fit into the memory of a GPU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import torch

from gadgets.frame import Frame
from gadgets.gadget import Gadget

log = logging.getLogger("spinstream")

CPU = torch.device("cpu")

TELLING = "can't allocate memory", "ALLOC_FAILED", "CUDA error: out of memory"
"""Words in the plain RuntimeError that PyTorch raises for the CPU, for libraries of CUDA, and for a GPU that is full
before it is first used."""


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


def moved(frame: Frame, gadget: Gadget[Any], device: torch.device) -> Frame:
    """A frame on a device; where it is, if the device is a GPU whose memory does not suffice, which is told."""
    try:
        return frame.on(device)
    except Exception as error:
        if device.type == "cpu" or not out_of_memory(error):
            raise
        log.warning("%s", str(error))
    torch.cuda.empty_cache()
    gadget.session.tell(f"{frame.label}: stays on the CPU, since the GPU's memory did not suffice")
    frame.history.append(f"{type(gadget).__name__}: on the CPU, since the GPU's memory did not suffice")
    return frame


def fitting(
    gadget: Gadget[Any], work: Callable[[Sequence[Frame]], Iterator[object]], frames: Sequence[Frame]
) -> Iterator[object]:
    """What work makes of frames of one device; on the CPU where they do not fit into the memory of a GPU.

    It must leave frames for which the memory did not suffice as they were.
    """
    results = begun(work(frames), frames[0].device)
    return worked_on_the_cpu(gadget, work, frames) if results is None else results


def worked_on_the_cpu(
    gadget: Gadget[Any], work: Callable[[Sequence[Frame]], Iterator[object]], frames: Sequence[Frame]
) -> Iterator[object]:
    """What work makes of frames there; this is told, and stands in the history.

    The frames go back to their device for the gadgets that follow. Meanwhile others may use it.
    """
    name, device = type(gadget).__name__, frames[0].device
    gadget.session.tell(f"{frames[0].label}: {name} continues on the CPU, since the GPU's memory did not suffice")
    here = [frame.on(CPU) for frame in frames]
    for frame in here:
        frame.history.append(f"{name}: on the CPU, since the GPU's memory did not suffice")
    with gadget.session.without_turn():
        items = list(work(here))
    for item in items:
        yield moved(item, gadget, device) if isinstance(item, Frame) else item


def taken(gadget: Gadget[Any], item: object) -> Iterator[object]:
    """What a gadget yields for an item; on the CPU for a frame that does not fit into the memory of a GPU."""
    if not isinstance(item, Frame) or not gadget.per_frame:
        return gadget.take(item)
    if item.device.type == "cpu" != gadget.session.device.type:  # it did not fit before
        return chain(gadget.finish(), taken_on_the_cpu(gadget, item))
    untouched = replace(item, history=[*item.history])
    results = begun(gadget.take(item), item.device)
    return taken_on_the_cpu(gadget, untouched) if results is None else results


def taken_on_the_cpu(gadget: Gadget[Frame], frame: Frame) -> Iterator[object]:
    """What a gadget of the same settings yields for a frame there; see `worked_on_the_cpu`."""

    def work(frames: Sequence[Frame]) -> Iterator[object]:
        other = type(gadget)(**{name: getattr(gadget, name) for name in gadget.properties()})
        other.open(replace(gadget.session, device=CPU, history=[]))
        return chain(*map(other.take, frames), other.finish())

    return worked_on_the_cpu(gadget, work, [frame])
