import io
import socket
import struct
import threading
import tracemalloc

import ismrmrd
import numpy as np
import pytest

from pipelines.bounds import BOUNDS, MEBIBYTE, Bounds
from pipelines.errors import MalformedMessage, PeerIdle, PeerVanished
from pipelines.wire import (
    IMAGE_TYPES,
    Close,
    ConfigFile,
    ConfigText,
    Connection,
    ErrorText,
    HeaderText,
    MessageReader,
    Text,
)

from mrd_items import acquisition


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs, Connection(ours, patience=2.0) as connection:
        yield connection, theirs


def sent(message) -> bytes:
    """The bytes that `send` puts on the wire."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        got = bytearray()
        reader = threading.Thread(target=lambda: got.extend(iter_bytes(theirs)))
        reader.start()
        with Connection(ours) as connection:
            connection.send(message)
            connection.hang_up()
        reader.join()
    return bytes(got)


def iter_bytes(sock) -> bytes:
    parts = []
    while part := sock.recv(65536):
        parts.append(part)
    return b"".join(parts)


def received(raw: bytes, patience: float = 2.0):
    """What `receive` makes of bytes followed by the end of the stream."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        writer = threading.Thread(target=lambda: (theirs.sendall(raw), theirs.shutdown(socket.SHUT_WR)))
        writer.start()
        try:
            with Connection(ours, patience) as connection:
                return connection.receive()
        finally:
            ours.close()
            writer.join()


def image(data: np.ndarray, **meta) -> ismrmrd.Image:
    result = ismrmrd.Image.from_array(data, transpose=False, image_index=3, field_of_view=(1.0, 2.0, 3.0))
    result.meta = {"DataRole": "Image", **meta}
    return result


def waveform() -> ismrmrd.Waveform:
    return ismrmrd.Waveform.from_array(np.arange(12, dtype=np.uint32).reshape(3, 4), waveform_id=2, time_stamp=7)


@pytest.mark.parametrize(
    ("message", "raw"),
    [
        (ConfigFile("a.xml"), struct.pack("<H", 1) + b"a.xml".ljust(1024, b"\0")),
        (ConfigText("<a/>"), struct.pack("<HI", 2, 4) + b"<a/>"),
        (HeaderText("<h/>"), struct.pack("<HI", 3, 4) + b"<h/>"),
        (Close(), struct.pack("<H", 4)),
        (Text("grüß"), struct.pack("<HI", 5, 6) + "grüß".encode()),
        (ErrorText("no"), struct.pack("<HQ", 8, 2) + b"no"),
    ],
)
def test_control_messages_have_the_documented_layout(message, raw):
    assert sent(message) == raw
    assert received(raw) == message


@pytest.mark.parametrize("number", [2, 3, 5])
def test_strings_may_end_in_nul(number):
    message = received(struct.pack("<HI", number, 6) + b"<a/>\0\0")
    assert "<a/>" in vars(message).values()


def test_acquisitions_equal_those_of_the_ismrmrd_package():
    item = acquisition(7, channels=3, samples=5)
    item.resize(5, 3, 2)
    item.traj[:] = np.arange(10).reshape(5, 2)
    raw = struct.pack("<H", 1008) + item.to_bytes()
    assert sent(item) == raw
    back = received(raw)
    assert back.getHead() == item.getHead()
    np.testing.assert_array_equal(back.data, item.data)
    np.testing.assert_array_equal(back.traj, item.traj)


def test_waveforms_equal_those_of_the_ismrmrd_package():
    raw = struct.pack("<H", 1026) + waveform().to_bytes()
    assert sent(waveform()) == raw
    assert received(raw) == waveform()


@pytest.mark.parametrize("dtype", ["uint16", "int16", "uint32", "float32", "float64", "complex64", "complex128"])
def test_images_equal_those_of_the_ismrmrd_package(dtype):
    data = np.arange(24).reshape(1, 2, 3, 4).astype(dtype)
    item = image(data, Window="3")
    raw = struct.pack("<H", 1022) + item.to_bytes()
    assert sent(item) == raw
    back = received(raw)
    np.testing.assert_array_equal(back.data, data)
    assert back.data.dtype == data.dtype
    assert back.meta == item.meta
    assert tuple(back.getHead().matrix_size) == (4, 3, 2)


def test_int32_images_have_four_bytes_per_pixel():
    """The package believes that they have eight."""
    raw = bytearray(sent(image(np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3))))
    raw[4:6] = struct.pack("<H", ismrmrd.DATATYPE_INT)
    raw[-24:] = np.arange(6, dtype="<i4").tobytes()
    back = received(bytes(raw))
    assert back.data.ravel().tolist() == list(range(6))
    assert IMAGE_TYPES[ismrmrd.DATATYPE_INT].itemsize == 4
    assert sent(back) == bytes(raw)


def test_the_ismrmrd_package_reads_a_whole_conversation():
    serialization = pytest.importorskip("ismrmrd.serialization")
    items = [acquisition(1), waveform(), image(np.ones((1, 1, 2, 2), np.float32))]
    raw = b"".join(sent(item) for item in [ConfigFile("x"), *items, Close()])
    read = list(serialization.ProtocolDeserializer(io.BytesIO(raw)).deserialize())
    assert [type(item).__name__ for item in read] == ["ConfigFile", "Acquisition", "Waveform", "Image"]
    np.testing.assert_array_equal(read[1].data, items[0].data)


@pytest.mark.parametrize(
    "message",
    [
        ConfigFile("preview"),
        ConfigText("<a/>"),
        HeaderText("<h/>"),
        Text("hello"),
        ErrorText("oh"),
        acquisition(3),
        waveform(),
        image(np.ones((1, 1, 2, 2), np.float32)),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_message_cut_anywhere_is_a_vanished_peer(message):
    raw = sent(message)
    cuts = {0, 1, 2, 3, 5, 6, 9, 10, len(raw) // 2, len(raw) - 1}
    for cut in sorted(cut for cut in cuts if cut < len(raw)):
        with pytest.raises(PeerVanished, match="ended after"):
            received(raw[:cut])


@pytest.mark.parametrize("number", [0, 6, 7, 9, 1023, 1050, 65535])
def test_unknown_ids_are_named(number):
    with pytest.raises(MalformedMessage, match=f"message id {number} is not known"):
        received(struct.pack("<H", number) + bytes(100))


@pytest.mark.parametrize(("number", "layout"), [(2, "<I"), (3, "<I"), (5, "<I"), (8, "<Q")])
def test_absurd_text_lengths_are_refused_before_allocation(number, layout):
    with pytest.raises(MalformedMessage, match="bytes was announced"):
        received(struct.pack("<H", number) + struct.pack(layout, BOUNDS.text_bytes + 1))


def test_absurd_image_sizes_are_refused_before_allocation():
    raw = bytearray(sent(image(np.ones((1, 1, 2, 2), np.float32))))
    offset = 2 + ismrmrd.ImageHeader.matrix_size.offset
    raw[offset : offset + 6] = struct.pack("<HHH", 65535, 65535, 65535)
    with pytest.raises(MalformedMessage, match="image 3 announces"):
        received(bytes(raw))


@pytest.mark.parametrize(
    ("message", "bounds", "refusal"),
    [
        (Text("12345"), Bounds(text_bytes=4), "a text of 5 bytes was announced; at most 4 are taken"),
        (acquisition(7), Bounds(data_bytes=255), "acquisition 7 announces 256 bytes; at most 255 are taken"),
        (acquisition(7), Bounds(channels=1), "acquisition 7 announces 2 channels; at most 1 are taken"),
        (waveform(), Bounds(data_bytes=47), "waveform 0 announces 48 bytes; at most 47 are taken"),
        (image(np.ones((1, 1, 2, 2))), Bounds(data_bytes=31), "image 3 announces 32 bytes; at most 31 are taken"),
    ],
)
def test_what_a_message_may_announce_is_a_setting(message, bounds, refusal):
    with pytest.raises(MalformedMessage, match=refusal):
        MessageReader(io.BytesIO(sent(message)), bounds=bounds).read()


def announced(kind: str) -> tuple[bytes, int]:
    """The beginning of a message that announces several hundred MiB, and how many."""
    if kind == "text":
        return struct.pack("<HI", 5, 512 * MEBIBYTE), 512
    head = acquisition(0).getHead()
    head.active_channels, head.number_of_samples = 1024, 65535
    return struct.pack("<H", 1008) + bytes(head), 512


@pytest.mark.parametrize("kind", ["text", "acquisition"])
def test_memory_is_taken_as_bytes_come_not_as_they_are_announced(kind, monkeypatch):
    monkeypatch.setattr("pipelines.wire.AT_ONCE", MEBIBYTE)
    start, size = announced(kind)
    came = 3 * MEBIBYTE
    reader = MessageReader(io.BytesIO(start + bytes(came)), bounds=Bounds(text_bytes=size * MEBIBYTE))
    tracemalloc.start()
    with pytest.raises(PeerVanished, match=f"the connection ended after {came} of 5[0-9]+ bytes"):
        reader.read()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * came


@pytest.mark.parametrize("at_once", [1, 100, 4096, 65536])
def test_a_message_for_which_memory_grows_is_whole(at_once, monkeypatch):
    monkeypatch.setattr("pipelines.wire.AT_ONCE", at_once)
    item = acquisition(0, channels=8, samples=1000)
    back = received(sent(item))
    np.testing.assert_array_equal(back.data, item.data)
    assert back.data.flags.writeable


def test_unknown_image_types_are_refused():
    raw = bytearray(sent(image(np.ones((1, 1, 2, 2), np.float32))))
    raw[4:6] = struct.pack("<H", 99)
    with pytest.raises(MalformedMessage, match="data type 99; expected 1 to 8"):
        received(bytes(raw))


def test_acquisitions_without_samples_are_refused():
    empty = acquisition(5).getHead()
    empty.number_of_samples = 0
    with pytest.raises(MalformedMessage, match="acquisition 5 announces 2 channels x 0 samples"):
        received(struct.pack("<H", 1008) + bytes(empty))


def test_text_that_is_not_utf8_is_refused():
    with pytest.raises(MalformedMessage, match="not UTF-8"):
        received(struct.pack("<HI", 5, 2) + b"\xff\xfe")


def test_image_attributes_that_are_not_xml_are_refused():
    raw = sent(image(np.ones((1, 1, 1, 1), np.float32)))
    broken = raw.replace(b"</ismrmrdMeta>", b"<ismrmrdMeta/>")
    assert broken != raw
    with pytest.raises(MalformedMessage, match="attributes are not valid XML"):
        received(broken)


def test_image_attributes_that_define_entities_are_refused():
    """The package would expand them: ten lines can make gigabytes."""
    raw = sent(image(np.ones((1, 1, 1, 1), np.float32)))
    old, new = b"<?xml version='1.0' encoding='UTF-8'?>", b"<!DOCTYPE a [<!ENTITY b 'c'>]>"
    assert old in raw
    with pytest.raises(MalformedMessage, match="a document type declaration is not taken"):
        received(raw.replace(old, new.ljust(len(old))))


def test_a_silent_peer_is_idle(pair):
    connection, peer = pair
    connection._socket.settimeout(0.05)
    peer.sendall(b"\x04")
    with pytest.raises(PeerIdle, match="waiting for a message id"):
        connection.receive()


def test_a_peer_that_takes_nothing_is_idle():
    ours, theirs = socket.socketpair()
    with ours, theirs, Connection(ours, patience=0.05) as connection:
        big = acquisition(0, channels=64, samples=8192)
        with pytest.raises(PeerIdle, match="took no data"):
            for _ in range(10):
                connection.send(big)


def test_sending_to_a_vanished_peer_says_so(pair):
    connection, peer = pair
    peer.close()
    with pytest.raises(PeerVanished, match="the peer is gone"):
        connection.send(acquisition(0))
        connection.send(acquisition(1))


def test_config_names_have_a_length_limit(pair):
    with pytest.raises(ValueError, match="at most 1023 bytes, got 1024"):
        pair[0].send(ConfigFile("x" * 1024))


def test_large_messages_survive_partial_writes():
    items = [acquisition(i, channels=32, samples=4096) for i in range(8)]
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    def send():
        with Connection(ours) as connection:
            for item in items:
                connection.send(item)

    writer = threading.Thread(target=send)
    with ours, theirs:
        writer.start()
        with Connection(theirs, 5.0) as connection:
            for item in items:
                np.testing.assert_array_equal(connection.receive().data, item.data)
        writer.join()
