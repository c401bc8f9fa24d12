"""Messages as bytes, made by the `ismrmrd` package itself, as a client sends them and a journal keeps them."""

from __future__ import annotations

import struct

import ismrmrd
import numpy as np

from pipelines.wire import Close, ConfigFile, ConfigText, ErrorText, HeaderText, Message, Text

from mrd_items import acquisition

DATA = {ismrmrd.Acquisition: 1008, ismrmrd.Waveform: 1026, ismrmrd.Image: 1022}


def recorded(*messages: Message) -> bytes:
    """The messages, one after the other."""
    return b"".join(_bytes(message) for message in messages)


def _bytes(message: Message) -> bytes:
    if type(message) in DATA:
        return struct.pack("<H", DATA[type(message)]) + message.to_bytes()
    if isinstance(message, ConfigFile):
        return struct.pack("<H1024s", 1, message.name.encode())
    if isinstance(message, Close):
        return struct.pack("<H", 4)
    text = (message.text if isinstance(message, (Text, ErrorText)) else message.xml).encode()
    number = {ConfigText: 2, HeaderText: 3, Text: 5, ErrorText: 8}[type(message)]
    return struct.pack("<HQ" if number == 8 else "<HI", number, len(text)) + text


def trajectory_acquisition(number: int, channels: int = 2, samples: int = 16) -> ismrmrd.Acquisition:
    """A readout with a trajectory of two dimensions."""
    item = acquisition(number, channels, samples)
    item.resize(samples, channels, 2)
    item.traj[:] = np.arange(2 * samples).reshape(samples, 2) / 7
    return item


def waveform(number: int, **fields) -> ismrmrd.Waveform:
    """Physiology of two channels."""
    data = np.arange(10, dtype=np.uint32).reshape(2, 5) + number
    return ismrmrd.Waveform.from_array(data, scan_counter=number, waveform_id=4, **fields)
