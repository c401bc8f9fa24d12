"""Sessions against the embedded server, written byte by byte where the client matters."""

import json
import socket
import struct
import threading
import time

import ismrmrd
import numpy as np
import pytest

from pipelines.streams.limits import Limits
from pipelines.streams.server import Server
from pipelines.wire import ERROR, NOTE, Close, ConfigFile, ConfigText, Connection, HeaderText, Text

from mrd_items import HEADER_XML, acquisition, configuration
from raw_client import converse, packed, texts

COUNT = ConfigText(configuration("Count"))
TO_IMAGE = ConfigText(configuration("ToImage"))
HEADER = HeaderText(HEADER_XML)


def assert_serves(address) -> None:
    """A good session works."""
    assert "counted 3" in texts(converse(address, COUNT, HEADER, *map(acquisition, range(3))), NOTE)


def test_a_session_brings_images_in_order(address):
    items = [acquisition(i) for i in range(5)]
    got = converse(address, TO_IMAGE, HEADER, *items)
    images = [m for m in got if isinstance(m, ismrmrd.Image)]
    assert [image.image_index for image in images] == [1, 2, 3, 4, 5]
    assert images[3].data.max() == 3
    assert not texts(got, ERROR)


@pytest.mark.parametrize("ending", [b"", b"\0"])
def test_gadgetron_client_style_session(address, ending):
    """Configuration and header as the C++ client writes them: lengths count a NUL, or there is none."""
    config = packed(2, configuration("Count").encode() + ending)
    header = packed(3, HEADER_XML.encode() + ending)
    data = struct.pack("<H", 1008) + acquisition(0).to_bytes()
    got = converse(address, config + header + data + struct.pack("<H", 4), close=False)
    assert "counted 1" in texts(got, NOTE)


@pytest.mark.parametrize("name", ["count", "count.xml"])
def test_config_file_names_with_and_without_extension(site, start_server, tmp_path, name):
    (tmp_path / "count.xml").write_text(configuration("Count"))
    object.__setattr__(site, "definitions", (tmp_path,))
    got = converse(start_server(), ConfigFile(name), HEADER, acquisition(0))
    assert "counted 1" in texts(got, NOTE)


def test_python_ismrmrd_server_style_session(address):
    """Its client sends NUL-terminated texts, then a JSON text, and counts on a close in return."""
    parameters = json.dumps({"version": "1.0", "parameters": {"config": "count", "customconfig": ""}}).encode()
    parts = [packed(2, configuration("Count").encode() + b"\0"), packed(3, HEADER_XML.encode() + b"\0")]
    parts += [packed(5, parameters + b"\0"), struct.pack("<H", 1008) + acquisition(0).to_bytes()]
    got = converse(address, *parts)
    assert texts(got, NOTE)[0] == "parameters that are not gadget.property were not used: config, customconfig"
    assert "counted 1" in texts(got, NOTE)


def test_parameters_set_properties_over_the_wire(start_server, site):
    preview = ConfigFile("preview")
    wrong = Text(json.dumps({"parameters": {"CoilCompression.energy": 7}}))
    (reason,) = texts(converse(start_server(), preview, HEADER, wrong), ERROR)
    assert reason.startswith("parameters: CoilCompression.energy: expected a number")


def test_items_that_no_gadget_takes_come_back_unchanged(address):
    waveform = ismrmrd.Waveform.from_array(np.arange(8, dtype=np.uint32).reshape(2, 4), waveform_id=1)
    image = ismrmrd.Image.from_array(np.ones((1, 1, 2, 2), np.float32), transpose=False)
    sent = [waveform if i % 3 == 0 else image for i in range(16)]
    got = [m for m in converse(address, COUNT, HEADER, *sent) if not isinstance(m, Text)]
    assert [type(m) for m in got] == [type(m) for m in sent]
    assert all(m.getHead() == s.getHead() for m, s in zip(got, sent, strict=True))
    assert all(np.array_equal(m.data, s.data) for m, s in zip(got, sent, strict=True))


def test_sixteen_acquisitions_pass_a_chain_that_does_not_take_them(address):
    flags = [ismrmrd.ACQ_IS_NAVIGATION_DATA, ismrmrd.ACQ_IS_PHASECORR_DATA, ismrmrd.ACQ_IS_DUMMYSCAN_DATA, None]
    sent = [acquisition(i, channels=1 + i % 4, samples=8 * (1 + i % 3)) for i in range(16)]
    for i, item in enumerate(sent):
        if flags[i % 4] is not None:
            item.setFlag(flags[i % 4])
    got = [m for m in converse(address, ConfigText(configuration("Pass")), HEADER, *sent) if not isinstance(m, Text)]
    assert len(got) == 16
    for back, item in zip(got, sent, strict=True):
        assert back.getHead() == item.getHead()
        np.testing.assert_array_equal(back.data, item.data)


def test_what_has_no_writer_is_not_sent_and_said(address):
    """Gadgetron's own client aborts on a message type that it does not expect."""
    writers = "<writers><writer><classname>ImageWriter</classname></writer></writers><stream>"
    config = ConfigText(configuration("ToImage").replace("<stream>", writers))
    waveform = ismrmrd.Waveform.from_array(np.zeros((1, 4), np.uint32))
    got = converse(address, config, HEADER, waveform, acquisition(0), waveform)
    assert [type(m) for m in got if not isinstance(m, Text)] == [ismrmrd.Image]
    assert "not sent, since the pipeline names no writer for them: 2 Waveform" in texts(got, NOTE)


# Each: what is sent, and what the reason must say. `close` is the polite end of the sender's side.
ACQUISITION = struct.pack("<H", 1008) + acquisition(0).to_bytes()
SAMPLES_AT = 2 + ismrmrd.AcquisitionHeader.number_of_samples.offset
NO_SAMPLES = ACQUISITION[:SAMPLES_AT] + b"\0\0" + ACQUISITION[SAMPLES_AT + 2 :]
MALFORMED = {
    "half an id": ([b"\x01"], "ended after 1 of 2 bytes of a message id"),
    "unknown id": ([b"\xff\xff"], "message id 65535 is not known"),
    "http": ([b"GET / HTTP/1.1\r\n\r\n"], "message id 17735 is not known"),
    "query": ([struct.pack("<HQQQ", 6, 0, 1, 0)], "message id 6 is not known"),
    "half a config name": ([struct.pack("<H", 1) + b"pre"], "ended after 3 of 1024 bytes of a config file name"),
    "unknown pipeline": ([ConfigFile("nonsense")], "no pipeline is called 'nonsense'"),
    "absurd config length": ([struct.pack("<HI", 2, 2**32 - 1)], "a text of 4294967295 bytes was announced"),
    "config not utf-8": ([packed(2, b"\xff\xfe")], "not UTF-8"),
    "config not xml": ([ConfigText("hello")], "config text:1: not well-formed XML"),
    "config with entities": ([ConfigText("<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>")], "document type declaration"),
    "config without gadgets": ([ConfigText(configuration())], "lists no gadgets"),
    "unknown gadget": ([ConfigText(configuration("Cuont"))], "did you mean 'Count'?"),
    "header first": ([HEADER], "expected a config file (1) or config text (2) first, got a header (3)"),
    "data first": ([acquisition(0)], "expected a config file (1) or config text (2) first, got an acquisition (1008)"),
    "data before header": ([COUNT, acquisition(0)], "expected the MRD header (3) after the configuration"),
    "close before header": ([COUNT, Close()], "expected the MRD header (3) after the configuration, got a close (4)"),
    "header not xml": ([COUNT, HeaderText("hello")], "MRD header, line 1: not well-formed XML"),
    "header of another kind": ([COUNT, HeaderText("<a/>")], "expected the root <ismrmrdHeader>, got <a>"),
    "header with wrong values": (
        [COUNT, HeaderText(HEADER_XML.replace("<x>16</x>", "<x>sixteen</x>"))],
        "encoding/encodedSpace/matrixSize/x: expected a value of the type int",
    ),
    "second header": ([COUNT, HEADER, HEADER], "a header (3) came after the header"),
    "second config": ([COUNT, HEADER, acquisition(0), COUNT], "a config text (2) came after the header"),
    "half an acquisition": ([COUNT, HEADER, ACQUISITION[:100]], "bytes of an acquisition header"),
    "half the samples": ([COUNT, HEADER, ACQUISITION[:-8]], "of 256 bytes of acquisition 0"),
    "no samples": ([COUNT, HEADER, NO_SAMPLES], "announces 2 channels x 0 samples"),
    "no close": ([COUNT, HEADER, acquisition(0)], "ended after 0 of 2 bytes of a message id"),
    "client reports an error": ([COUNT, HEADER, struct.pack("<HQ", 8, 2) + b"ow"], "the peer reports: ow"),
    "parameters not an object": ([COUNT, HEADER, Text('{"parameters": [1]}')], '"parameters" must be an object'),
    "nested parameters": ([COUNT, HEADER, Text('{"parameters": {"a.b": {}}}')], "parameter a.b: expected text"),
    "text that cannot be encoded": (
        [COUNT, HEADER, Text('{"parameters": {"\\ud800.b": 1}}')],
        "parameters: \\ud800.b: expected gadget.property",
    ),
    "parameter of no gadget": (
        [COUNT, HEADER, Text('{"parameters": {"Coutn.b": 1}}')],
        "parameters: Coutn.b: expected gadget.property with a gadget of 'config text'; did you mean 'Count'?",
    ),
    "raising gadget": (
        [ConfigText(configuration("Fail")), HEADER, *map(acquisition, range(5)), Close()],
        "Fail failed on acquisition 2 (slice 0, step 2): the coil is on fire",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_sessions_get_their_reason_and_the_server_lives_on(address, case):
    messages, reason = MALFORMED[case]
    errors = texts(converse(address, *messages, close=False), ERROR)
    assert len(errors) == 1
    assert reason in errors[0]
    assert_serves(address)


def test_a_client_that_says_nothing_costs_no_process_and_no_place(start_server):
    """Health checks and scans of ports connect and go."""
    address = start_server(sessions=1)
    for _ in range(3):
        with socket.create_connection(address) as sock:
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""
    with socket.create_connection(address):
        assert_serves(address)


def test_a_client_that_waits_for_an_answer_hears_at_once(start_server):
    address = start_server(patience_s=60)
    for messages in ([ConfigText(configuration("Cuont"))], [COUNT, HeaderText("<a/>")]):
        with socket.create_connection(address) as sock, Connection(sock, 5.0) as connection:
            for message in messages:
                connection.send(message)
            assert connection.receive().text.startswith(ERROR)


def test_parameters_of_other_programs_may_hold_anything(address):
    parameters = Text(json.dumps({"parameters": {"options": None, "list": [1], "config": "x"}}))
    got = converse(address, COUNT, HEADER, parameters, acquisition(0))
    assert "parameters that are not gadget.property were not used: config, list, options" in texts(got, NOTE)


def test_what_came_before_a_failure_is_delivered(address):
    got = converse(address, ConfigText(configuration("Fail")), HEADER, *map(acquisition, range(5)))
    assert [m.scan_counter for m in got if isinstance(m, ismrmrd.Acquisition)] == [0, 1]


def test_an_error_reaches_a_client_that_is_still_sending(address):
    """Closing a socket with unread data would reset the connection and lose the reason."""
    many = [acquisition(i, channels=32, samples=2048) for i in range(200)]
    (reason,) = texts(converse(address, ConfigText(configuration("Fail")), HEADER, *many), ERROR)
    assert "the coil is on fire" in reason


def test_an_idle_client_is_told_and_let_go(start_server):
    address = start_server(patience_s=0.2)
    with socket.create_connection(address) as sock, Connection(sock, 5.0) as connection:
        connection.send(COUNT)
        assert "nothing came for 0.2 s" in connection.receive().text
        assert isinstance(connection.receive(), Close)
    assert_serves(address)


def test_a_client_that_vanishes_ends_only_its_own_session(address):
    with socket.create_connection(address) as other, Connection(other, 5.0) as connection:
        connection.send(TO_IMAGE)
        connection.send(HEADER)
        with socket.create_connection(address) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            sock.sendall(packed(2, configuration("ToImage").encode()) + packed(3, HEADER_XML.encode()) + ACQUISITION)
        connection.send(acquisition(6))
        assert connection.receive().image_index == 7
        connection.send(Close())
        while not isinstance(connection.receive(), Close):
            pass


RESET = struct.pack("ii", 1, 0)
"""For SO_LINGER: closing resets the connection, as the end of a process with unread data does."""


@pytest.mark.parametrize("polite", [True, False], ids=["after its close", "before its close"])
@pytest.mark.parametrize("reset", [True, False], ids=["resets", "ends"])
def test_a_client_that_leaves_frees_its_worker(start_server, polite, reset):
    address = start_server(sessions=1)
    with socket.create_connection(address) as sock, Connection(sock, 5.0) as connection:
        connection.send(ConfigText(configuration("Long")))
        connection.send(HEADER)
        connection.send(acquisition(0))
        assert isinstance(connection.receive(), ismrmrd.Acquisition)
        if polite:
            connection.send(Close())
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        if not texts(converse(address, COUNT, HEADER), ERROR):
            return
        time.sleep(0.05)
    pytest.fail("the gadget computes for a client that is gone")


def test_a_client_that_has_sent_all_may_end_its_side_and_wait(address):
    got = converse(address, ConfigText(configuration("Short")), HEADER, acquisition(0), Close(), close=False)
    assert texts(got, NOTE)[0] == "the client sends no more; images still follow"
    assert texts(got, NOTE)[1].startswith("times: Short")


def test_many_clients_at_once_get_their_own_images(address):
    results: dict[int, list[float]] = {}

    def client(number: int) -> None:
        got = converse(address, TO_IMAGE, HEADER, *[acquisition(100 * number + i) for i in range(20)])
        results[number] = [float(m.data.max()) for m in got if isinstance(m, ismrmrd.Image)]

    threads = [threading.Thread(target=client, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: [100.0 * n + i for i in range(20)] for n in range(8)}


def test_one_session_too_many_is_refused_with_the_reason(start_server):
    address = start_server(sessions=1)
    with socket.create_connection(address) as sock, Connection(sock, 5.0) as connection:
        connection.send(TO_IMAGE)
        connection.send(HEADER)
        connection.send(acquisition(0))
        assert connection.receive().image_index == 1
        assert "all 1 sessions of this server are in use" in texts(converse(address, COUNT, HEADER), ERROR)[0]
        connection.send(Close())
        while not isinstance(connection.receive(), Close):
            pass
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if not texts(converse(address, COUNT, HEADER), ERROR):
            return
    pytest.fail("the place was not given back")


def test_a_client_that_does_not_read_stalls_only_itself(start_server):
    address = start_server(patience_s=0.5, buffer_bytes=1 << 20)
    with socket.create_connection(address) as sock, Connection(sock, 0.2) as connection:
        connection.send(ConfigText(configuration("Fail")))
        connection.send(HEADER)
        big = acquisition(9, channels=64, samples=8192)
        with pytest.raises(Exception, match="took no data|the peer is gone"):
            for _ in range(40):
                connection.send(big)
        assert_serves(address)


def test_a_stopping_server_says_so_to_its_clients(site):
    server = Server("127.0.0.1", 0, site, Limits(patience_s=30))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    with socket.create_connection(server.server_address[:2]) as sock, Connection(sock, 5.0) as connection:
        connection.send(TO_IMAGE)
        connection.send(HEADER)
        connection.send(acquisition(0))
        assert connection.receive().image_index == 1
        server.shutdown()
        assert server.dismiss(5.0)
        assert connection.receive().text == f"{ERROR}the server is being stopped\n"
        assert isinstance(connection.receive(), Close)
    server.server_close()
    thread.join()
