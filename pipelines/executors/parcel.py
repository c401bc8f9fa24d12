"""Items on their way between processes."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Parcel:
    """Items as bytes, and their tensors as arrays. Tensors that the receiver knows already do not travel.

    What is read is executed, as all that the members of a Dask cluster send each other: never read one from elsewhere.
    """

    items: bytes
    arrays: Sequence[NDArray[Any]]

    @classmethod
    def of(cls, items: object, known: Sequence[Tensor] = ()) -> tuple[Parcel, list[Tensor]]:
        """Packs items.

        Args:
            items: anything that can be pickled.
            known: the tensors that the receiver has, in the order in which it has them.

        Returns:
            The parcel, and the tensors that its receiver will have, in order: those that were known come first.
        """
        stream = io.BytesIO()
        packer = _Packer(stream, known)
        packer.dump(items)
        return cls(stream.getvalue(), [_array(tensor) for tensor in packer.tensors[len(known) :]]), packer.tensors

    def open(self, device: torch.device, known: Sequence[Tensor] = ()) -> tuple[Any, list[Tensor]]:
        """The items with their tensors on a device, and all these tensors, those that were known first."""
        # What NumPy got from the network may be read-only, and torch has no tensors of that kind.
        sent = [torch.from_numpy(np.require(array, requirements="W")).to(device) for array in self.arrays]
        tensors = [*known, *sent]
        return _Unpacker(io.BytesIO(self.items), tensors).load(), tensors


class _Packer(pickle.Pickler):
    """Replaces tensors by their numbers; one that stands in several places is one all the same."""

    def __init__(self, stream: io.BytesIO, known: Sequence[Tensor]) -> None:
        super().__init__(stream, protocol=5)
        self.tensors = list(known)
        self._numbers = {id(tensor): number for number, tensor in enumerate(self.tensors)}

    def persistent_id(self, item: object) -> int | None:
        if not isinstance(item, Tensor):
            return None
        if id(item) not in self._numbers:
            self._numbers[id(item)] = len(self.tensors)
            self.tensors.append(item)
        return self._numbers[id(item)]


class _Unpacker(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, tensors: Sequence[Tensor]) -> None:
        super().__init__(stream)
        self._tensors = tensors

    def persistent_load(self, number: int) -> Tensor:
        return self._tensors[number]


def _array(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().numpy()
    return array
