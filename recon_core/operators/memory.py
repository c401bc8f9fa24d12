"""How much is computed at once: decided from an estimate, before anything is allocated."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from recon_core.process_memory import available_memory

HELD = 4
"""Arrays of the size of a batch that exist at the same time, work space of the FFT included."""

SHARE = 0.5
"""Of the free memory that one operation may take."""

LARGEST = 12 * 2**20
"""Bytes of one such array on a processor. From 32 MiB on, glibc takes the pages of each array anew from the system,
which was measured to take three times as long as the arithmetic; from 64 MiB on of all that is freed together it gives
them back. With 12 MiB instead of 24, kernels of 192 x 192 and 220 x 220 pixels took a fifth and a tenth less time,
those of 128 x 128 and 256 x 256 the same."""


class Batches(NamedTuple):
    """What is taken at once, and the memory that this was decided from, in bytes."""

    images: int
    coils: int
    needed: int
    free: int

    def __str__(self) -> str:
        images = f"{self.images} image{'s' * (self.images > 1)}"
        coils = f"{self.coils} coil{'s' * (self.coils > 1)}"
        return f"{images} x {coils} at once, {_mebibytes(self.needed)} of {_mebibytes(self.free)} free"


def plan_batches(images: int, coils: int, each: int, device: torch.device) -> Batches:
    """The largest batches that fit: all coils of some images, or some coils of one image.

    Args:
        images, coils: how many there are.
        each: bytes of one array for one coil of one image.
        device: where.

    Raises:
        MemoryError: a single coil of a single image does not fit.
    """
    free = free_memory(device)
    fitting = int(SHARE * free) // (HELD * each)
    if fitting < 1:
        raise MemoryError(
            f"one coil of one image needs {_mebibytes(HELD * each)}, more than {SHARE:.0%} of the "
            f"{_mebibytes(free)} that are free on {device}"
        )
    if device.type == "cpu":
        fitting = max(1, min(fitting, LARGEST // each))
    coils_at_once = _even_share(coils, fitting)
    images_at_once = _even_share(images, fitting // coils) if coils_at_once == coils else 1
    return Batches(images_at_once, coils_at_once, HELD * each * images_at_once * coils_at_once, free)


def require_memory(needed: int, what: str, device: torch.device) -> None:
    """Says what does not fit before it is allocated.

    Raises:
        MemoryError: it needs more than may be taken of the free memory.
    """
    free = free_memory(device)
    if needed > SHARE * free:
        raise MemoryError(
            f"{what} need {_mebibytes(needed)}, more than {SHARE:.0%} of the {_mebibytes(free)} that are free on "
            f"{device}"
        )


def _even_share(number: int, at_most: int) -> int:
    """The size of the fewest batches of at most so many, when they are as even as can be."""
    return math.ceil(number / math.ceil(number / at_most))


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a device."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    return available_memory()


def _mebibytes(number: int) -> str:
    return f"{number / 2**20:.0f} MiB"
