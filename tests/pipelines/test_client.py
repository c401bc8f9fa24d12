"""The client against our server and against servers that misbehave."""

import socket
import struct
import threading
import time

import ismrmrd
import pytest

from pipelines.errors import FileError, PeerIdle, RemoteError, WireError
from pipelines.streams.client import stream
from pipelines.wire import Close, ConfigText, Connection, ErrorText, Text

from mrd_items import HEADER_XML, acquisition, configuration


def run(address, items, gadget="ToImage", parameters=None, patience_s=5.0):
    got, notes = [], []
    config = ConfigText(configuration(gadget))
    stream(address, config, HEADER_XML, items, got.append, notes.append, parameters, patience_s)
    return got, notes


@pytest.fixture
def serve_once():
    """Serves one client with a function of its socket; gives the address."""
    listeners = []

    def start(behave):
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def serve():
            sock, _ = listener.accept()
            with sock:
                behave(sock)

        threading.Thread(target=serve, daemon=True).start()
        return listener.getsockname()

    yield start
    for listener in listeners:
        listener.close()


def test_images_and_notes_come_back(address):
    got, notes = run(address, map(acquisition, range(3)))
    assert [item.image_index for item in got] == [1, 2, 3]
    assert notes[-1].startswith("times: ToImage ")


def test_a_server_error_is_raised_with_its_text(address):
    with pytest.raises(RemoteError, match=r"^Fail failed on acquisition 2 \(slice 0, step 2\): the coil is on fire$"):
        run(address, map(acquisition, range(5)), gadget="Fail")


def test_parameters_travel(address):
    with pytest.raises(RemoteError, match="parameters: ToImage.color: there is no such property"):
        run(address, [], parameters={"ToImage.color": "red"})


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = free.getsockname()
    with pytest.raises(WireError, match=f"no server answers at 127.0.0.1:{address[1]}"):
        run(address, [])


def test_an_error_while_reading_the_data_is_the_error(address):
    def items():
        yield acquisition(0)
        raise FileError("disk gone")

    with pytest.raises(FileError, match="disk gone"):
        run(address, items())


def test_a_server_that_stops_taking_data_and_closes(serve_once):
    def behave(sock):
        sock.recv(100)
        with Connection(sock) as connection:
            connection.send(Close())

    with pytest.raises(WireError, match="the peer is gone|closed before it had taken all the data"):
        run(serve_once(behave), (acquisition(i % 100, channels=64, samples=4096) for i in range(50)))


@pytest.mark.parametrize("message", [Text("map::at"), ErrorText("map::at"), Text("error: map::at")])
def test_texts_of_other_servers_are_errors(serve_once, message):
    def behave(sock):
        with Connection(sock) as connection:
            connection.send(message)
            connection.send(Close())
            connection.drain(2.0)

    with pytest.raises(RemoteError, match="^map::at$"):
        run(serve_once(behave), [acquisition(0)])


def test_log_lines_of_python_ismrmrd_server_are_notes(serve_once):
    def behave(sock):
        with Connection(sock) as connection:
            for _ in range(4):
                connection.receive()
            connection.send(Text("INFO     Total processing time: 12.00 ms"))
            connection.send(Close())
            connection.drain(2.0)

    _, notes = run(serve_once(behave), [acquisition(0)])
    assert notes == ["INFO     Total processing time: 12.00 ms"]


def test_an_error_is_heard_while_the_source_sleeps(address):
    def slow():
        yield from map(acquisition, range(3))
        time.sleep(20)
        yield acquisition(3)

    began = time.monotonic()
    with pytest.raises(RemoteError, match="the coil is on fire"):
        run(address, slow(), gadget="Fail")
    assert time.monotonic() - began < 5


def test_a_server_that_dies_is_not_a_success(serve_once):
    def behave(sock):
        image = ismrmrd.Image.from_array(acquisition(0).data, transpose=False)
        with Connection(sock) as connection:
            for _ in range(4):
                connection.receive()
            connection.send(image)
            sock.sendall(struct.pack("<H", 1022) + b"half")

    with pytest.raises(RemoteError, match="ended after 4 of 198 bytes of an image header"):
        run(serve_once(behave), [acquisition(0)])


def test_a_server_that_hangs_is_left(serve_once):
    waiting = threading.Event()
    with pytest.raises(PeerIdle, match=r"nothing came for 0\.2 s"):
        run(serve_once(lambda sock: waiting.wait(5)), [acquisition(0)], patience_s=0.2)
    waiting.set()
