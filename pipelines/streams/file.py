"""Raw data from an ISMRMRD .h5 file, read in blocks."""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import h5py
import ismrmrd
import numpy as np
from ismrmrd.waveform import WaveformHeader

from pipelines.errors import FileError
from pipelines.streams.journal import JournalFile
from pipelines.wire import ConfigFile, ConfigText, MessageId

# One HDF5 read per acquisition is some twenty times slower than one per block.
BLOCK = 64


class RawFile:
    """The raw data of one measurement.

    Args:
        path: an ISMRMRD file.
        group: the measurement's group in it.

    Attributes:
        header_xml: the MRD header.
        acquisitions: how many there are.
        config: of a recording, which pipeline the client asked for.
        parameters: of a recording, the text with which the client set properties.
        dropped: of a recording, what is missing at its end, in words.

    Raises:
        FileError: not an HDF5 file, no such group, or no acquisitions or header in it.
    """

    def __init__(self, path: Path, group: str = "dataset") -> None:
        self.path = path
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise FileError(f"{path}: cannot be read as an HDF5 file: {error}") from error
        try:
            with _readable(path, "its header"):
                self._group = self._measurement(group)
                self.header_xml = self._header()
                self.acquisitions = len(self._group["data"])
                self.config = self._config()
                self.parameters = self._optional_text("parameters")
                self.dropped = self._dropped()
        except FileError:
            self._file.close()
            raise

    def __enter__(self) -> RawFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def items(self) -> Iterator[ismrmrd.Acquisition | ismrmrd.Waveform]:
        """Acquisitions in the order of the file, with waveforms placed among them by time stamp.

        Raises:
            FileError: an entry whose length contradicts its header, or that cannot be read.
        """
        acquisitions = ((item.acquisition_time_stamp, item) for item in self._blocks("data", self._acquisition))
        with _readable(self.path, "the group of the measurement"):
            has_waveforms = "waveforms" in self._group
        if not has_waveforms:
            return (item for _, item in acquisitions)
        waveforms = ((item.time_stamp, item) for item in self._blocks("waveforms", self._waveform))
        return (item for _, item in heapq.merge(acquisitions, waveforms, key=lambda pair: pair[0]))

    def _measurement(self, name: str) -> h5py.Group:
        group = self._file.get(name)
        if not isinstance(group, h5py.Group):
            raise FileError(f"{self.path}: there is no group {name!r} (there are: {', '.join(self._file) or 'none'})")
        for part, what in (("xml", "MRD header"), ("data", "acquisitions")):
            if not isinstance(group.get(part), h5py.Dataset) or not group[part].size:
                raise FileError(
                    f"{self.path}: group {name!r} holds no {what}: its dataset {part!r} is missing or empty"
                )
        fields = group["data"].dtype.names or ()
        if not {"head", "traj", "data"} <= set(fields):
            raise FileError(f"{self.path}: the dataset 'data' of group {name!r} holds no MRD acquisitions")
        return group

    def _header(self) -> str:
        value = self._group["xml"][0]
        try:
            return value.decode() if isinstance(value, bytes) else str(value)
        except UnicodeDecodeError as error:
            raise FileError(f"{self.path}: the MRD header is not UTF-8 text: {error}") from error

    def _config(self) -> ConfigFile | ConfigText | None:
        """As spinstream and python-ismrmrd-server keep it."""
        name, xml = self._optional_text("config_file"), self._optional_text("config")
        if name:
            return ConfigFile(name)
        return ConfigText(xml) if xml else None

    def _dropped(self) -> str | None:
        dropped = self._group.attrs.get("dropped")
        return dropped if isinstance(dropped, str) else None

    def _optional_text(self, name: str) -> str | None:
        dataset = self._group.get(name)
        if not isinstance(dataset, h5py.Dataset) or dataset.shape != (1,):
            return None
        try:
            text = dataset[0].decode() if isinstance(dataset[0], bytes) else dataset[0]
        except UnicodeDecodeError as error:
            raise FileError(f"{self.path}: the text {name!r} is not UTF-8: {error}") from error
        return text if isinstance(text, str) else None

    def _blocks(self, name: str, make: Callable[[np.void, int], ismrmrd.Acquisition]) -> Iterator[ismrmrd.Acquisition]:
        with _readable(self.path, name):
            dataset = self._group[name]
            length = len(dataset)
        for start in range(0, length, BLOCK):
            with _readable(self.path, f"{name} {start} to {start + BLOCK}"):
                items = [make(entry, start + offset) for offset, entry in enumerate(dataset[start : start + BLOCK])]
            yield from items

    def _acquisition(self, entry: np.void, number: int) -> ismrmrd.Acquisition:
        head = ismrmrd.AcquisitionHeader.from_buffer_copy(entry["head"].tobytes())
        samples, channels, axes = head.number_of_samples, head.active_channels, head.trajectory_dimensions
        data, trajectory = entry["data"], entry["traj"]
        if data.size != 2 * samples * channels or trajectory.size != samples * axes:
            raise FileError(
                f"{self.path}: acquisition {number} holds {data.size // 2} samples and {trajectory.size} trajectory"
                f" values; its header says {channels} channels x {samples} samples and {axes} trajectory dimensions"
            )
        return ismrmrd.Acquisition(
            head,
            data=data.view(np.complex64).reshape(channels, samples),
            trajectory=np.asarray(trajectory, np.float32).reshape(samples, axes),
        )

    def _waveform(self, entry: np.void, number: int) -> ismrmrd.Waveform:
        head, data = WaveformHeader(), entry["data"]
        for name in entry["head"].dtype.names:
            setattr(head, name, entry["head"][name].item())
        if data.size != head.channels * head.number_of_samples:
            size = f"{head.channels} channels x {head.number_of_samples} samples"
            raise FileError(f"{self.path}: waveform {number} holds {data.size} values; its header says {size}")
        return ismrmrd.Waveform(head, data)


class Raw(Protocol):
    """Raw data of one measurement, whatever they are read from; see `RawFile`."""

    path: Path
    header_xml: str
    acquisitions: int
    config: ConfigFile | ConfigText | None
    parameters: str | None
    dropped: str | None

    def items(self) -> Iterator[Any]:
        """Acquisitions and waveforms, of a journal images too, in the order of the measurement."""


def open_raw(path: Path, group: str = "dataset") -> RawFile | JournalFile:
    """The raw data of an ISMRMRD .h5 file or of a journal; what is in the file decides.

    Args:
        path: of the file.
        group: the measurement's group in an .h5 file; a journal has no groups.

    Raises:
        FileError: it is neither, or holds no raw data.
    """
    return JournalFile(path) if is_journal(path, group) else RawFile(path, group)


def is_journal(path: Path, group: str = "dataset") -> bool:
    """Whether a file is rather a journal than an .h5 file.

    Raises:
        FileError: it cannot be read, or is a journal, and a group is asked for.
    """
    try:
        with path.open("rb") as file:
            number = int.from_bytes(file.read(2), "little")
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror or error}") from error
    if number not in [*MessageId] or h5py.is_hdf5(path):
        return False
    if group != "dataset":
        raise FileError(f"{path}: is a journal, which has no groups, so no {group!r} either")
    return True


@contextlib.contextmanager
def _readable(path: Path, what: str) -> Iterator[None]:
    """Turns into FileError what h5py raises where a file is damaged: OSError, KeyError, RuntimeError, TypeError, ..."""
    try:
        yield
    except FileError:
        raise
    except Exception as error:
        raise FileError(f"{path}: {what} cannot be read: {error or type(error).__name__}") from error
