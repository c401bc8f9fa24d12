"""Raw data into an ISMRMRD .h5 file, written in blocks."""

from __future__ import annotations

import os
from io import FileIO
from pathlib import Path
from typing import Any

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
    """Writes one measurement as group "dataset". All of it is on disk at the end of the `with` block.

    Args:
        path: of the file, made anew, for the eyes of its owner only.

    Raises:
        OSError: (`write` and the end of the block) the disk is full or broken.
    """

    def __init__(self, path: Path) -> None:
        self._disk = _Disk(path)
        self._file = h5py.File(self._disk, "w")
        self._group = self._file.create_group("dataset")
        self._acquisitions = _Blocks(self._group, "data", acquisition_dtype)
        self._waveforms = _Blocks(self._group, "waveforms", waveform_dtype)

    def __enter__(self) -> RawFileWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._acquisitions.write()
                self._waveforms.write()
        finally:
            self._file.close()
            self._disk.close()
        if kind is None:
            self._disk.check()

    def write_text(self, name: str, *texts: str) -> None:
        """Stores texts as a dataset; the MRD header is called "xml"."""
        self._group.create_dataset(name, data=[text.encode() for text in texts], dtype=BYTES)

    def note(self, name: str, text: str) -> None:
        """Stores a text as an attribute."""
        self._group.attrs[name] = text

    def write(self, item: ismrmrd.Acquisition | ismrmrd.Waveform) -> None:
        """Stores one item, at the latest at the end of the `with` block."""
        if isinstance(item, ismrmrd.Acquisition):
            samples = np.ascontiguousarray(item.data, np.complex64).view(np.float32)
            self._acquisitions.append(item, traj=item.traj.reshape(-1), data=samples.reshape(-1))
        else:
            self._waveforms.append(item, data=item.data.reshape(-1))
        self._disk.check()


class _Disk(FileIO):
    """The file below HDF5, which crashes where a write fails: it is not told, and `check` raises the reason instead."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+", opener=lambda name, flags: os.open(name, flags, 0o600))
        self._failure: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest and self._failure is None:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self._failure = error
        return size

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self._failure = self._failure or error
            return self.tell() if size is None else size

    def close(self) -> None:
        try:
            if not self.closed:
                os.fsync(self.fileno())
        except OSError as error:
            self._failure = self._failure or error
        super().close()

    def check(self) -> None:
        if self._failure is not None:
            raise self._failure


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
