"""Raw data into an ISMRMRD .h5 file, written in blocks."""

from __future__ import annotations

from pathlib import Path

import h5py
import ismrmrd
import numpy as np
import numpy.typing as npt
from ismrmrd.hdf5 import acquisition_dtype, waveform_dtype

# One HDF5 write per acquisition, as the `ismrmrd` package does it, is several times slower than one per block.
BLOCK_ITEMS = 1024
BLOCK_BYTES = 32 << 20

BYTES = h5py.special_dtype(vlen=bytes)


class RawFileWriter:
    """Writes one measurement as group "dataset". OSError or RuntimeError of HDF5 when the disk refuses.

    Args:
        path: of the file, made anew.
    """

    def __init__(self, path: Path) -> None:
        self._file = h5py.File(path, "w")
        self._group = self._file.create_group("dataset")
        self._acquisitions = _Blocks(self._group, "data", acquisition_dtype)
        self._waveforms = _Blocks(self._group, "waveforms", waveform_dtype)

    def __enter__(self) -> RawFileWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write_text(self, name: str, *texts: str) -> None:
        """Stores texts as a dataset; the MRD header is called "xml"."""
        self._group.create_dataset(name, data=[text.encode() for text in texts], dtype=BYTES)

    def note(self, name: str, text: str) -> None:
        """Stores a text as an attribute."""
        self._group.attrs[name] = text

    def write(self, item: ismrmrd.Acquisition | ismrmrd.Waveform) -> None:
        """Stores one item, by `flush` at the latest."""
        if isinstance(item, ismrmrd.Acquisition):
            samples = np.ascontiguousarray(item.data, np.complex64).view(np.float32)
            self._acquisitions.append(item, traj=item.traj.reshape(-1), data=samples.reshape(-1))
        else:
            self._waveforms.append(item, data=item.data.reshape(-1))

    def flush(self) -> None:
        """Hands all that came to the file system."""
        self._acquisitions.write()
        self._waveforms.write()
        self._file.flush()


class _Blocks:
    """Items of one kind, gathered for their dataset, which is made with the first."""

    def __init__(self, group: h5py.Group, name: str, dtype: np.dtype[np.void]) -> None:
        self._group = group
        self._name = name
        self._dtype = dtype
        self._waiting: list[dict[str, npt.NDArray[np.generic]]] = []
        self._bytes = 0

    def append(self, item: ismrmrd.Acquisition | ismrmrd.Waveform, **values: npt.NDArray[np.generic]) -> None:
        self._waiting.append({"head": np.frombuffer(item.getHead(), self._dtype["head"])[0], **values})
        self._bytes += sum(array.nbytes for array in values.values())
        if len(self._waiting) >= BLOCK_ITEMS or self._bytes >= BLOCK_BYTES:
            self.write()

    def write(self) -> None:
        if not self._waiting:
            return
        block = np.empty(len(self._waiting), self._dtype)
        for entry, parts in zip(block, self._waiting, strict=True):
            for name, value in parts.items():
                entry[name] = value
        dataset = self._group.get(self._name)
        if dataset is None:
            dataset = self._group.create_dataset(self._name, (0,), maxshape=(None,), dtype=self._dtype)
        start = len(dataset)
        dataset.resize(start + len(block), axis=0)
        dataset[start:] = block
        self._waiting, self._bytes = [], 0
