"""The chain as a child process of a scripted Gadgetron, in the exact order of bytes of the real one."""

import socket
import struct
import subprocess
import sys
import threading
import time

import ismrmrd
import pytest

from pipelines.errors import PeerVanished
from pipelines.wire import Close, Connection, ErrorText

from mrd_items import HEADER_XML, acquisition

pytest.importorskip("gadgetron")


def inner(*gadgets: str) -> bytes:
    """What Gadgetron hands to an external process: the <configuration> of its node."""
    lines = "".join(f'<gadget name="{name}" />' for name in gadgets)
    return f'<?xml version="1.0"?>\n<configuration>{lines}</configuration>\n'.encode()


class Parent:
    """Listens, starts the child, sends configuration (2) and header (3), then what the test says."""

    def __init__(self, configuration: bytes) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        port = str(self.listener.getsockname()[1])
        command = [sys.executable, "-m", "gadgetron", port, "pipelines.streams.gadgetron", "run_chain"]
        self.child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.listener.settimeout(60)
        self.sock, _ = self.listener.accept()
        self.connection = Connection(self.sock, patience=60)
        for number, text in ((2, configuration), (3, HEADER_XML.encode())):
            self.sock.sendall(struct.pack("<HI", number, len(text)) + text)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.kill()
        self.child.wait()
        self.child.stderr.close()
        self.connection.__exit__()
        self.sock.close()
        self.listener.close()

    def send(self, *items) -> None:
        for item in items:
            self.connection.send(item)

    def received(self) -> list:
        """Everything up to the child's close; after an error Gadgetron ends its own side and waits for that."""
        got = []
        while not isinstance(message := self.connection.receive(), Close):
            got.append(message)
            if isinstance(message, ErrorText):
                self.connection.hang_up()
        return got


def fully_sampled():
    items = [acquisition(i, channels=2, samples=16) for i in range(8)]
    items[-1].setFlag(ismrmrd.ACQ_LAST_IN_SLICE)
    return items


PREVIEW = ("Trajectory", "RemoveOversampling", "FrameAssembly", "CoilMaps", "Preview", "ImageExport")


def test_images_come_back_and_nothing_else():
    with Parent(inner(*PREVIEW)) as parent:
        parent.send(*fully_sampled(), Close())
        got = parent.received()
        parent.sock.shutdown(socket.SHUT_RDWR)
        assert [type(item).__name__ for item in got] == ["Image"]
        assert parent.child.wait(20) == 0
        assert "Traceback" not in parent.child.stderr.read()


@pytest.mark.parametrize(
    ("configuration", "reason"),
    [
        (b"", "not well-formed XML"),
        pytest.param(inner("Nonsense"), "no gadget is called 'Nonsense'", marks=pytest.mark.slow),
        pytest.param(inner("ImageExport"), "ImageExport needs image", marks=pytest.mark.slow),
    ],
)
def test_what_cannot_start_is_reported_with_id_8(configuration, reason):
    with Parent(configuration) as parent:
        (message,) = parent.received()
        assert isinstance(message, ErrorText)
        assert reason in message.text


@pytest.mark.slow
def test_a_raising_gadget_is_reported_with_id_8_before_the_close():
    with Parent(inner(*PREVIEW)) as parent:
        bad = fully_sampled()
        bad[3].data[:] = float("nan")
        parent.send(*bad, Close())
        (message,) = parent.received()
        assert isinstance(message, ErrorText)
        assert "failed on" in message.text


def test_an_error_is_heard_by_a_parent_that_is_still_sending():
    """A child that ended with data unread would reset the connection, and Gadgetron would hear nothing."""
    with Parent(inner(*PREVIEW)) as parent:
        bad = acquisition(0, channels=32, samples=4096)
        bad.data[:] = float("nan")
        sender = threading.Thread(target=send_until_refused, args=(parent, bad), daemon=True)
        sender.start()
        message = parent.connection.receive()
        assert isinstance(message, ErrorText)
        parent.sock.shutdown(socket.SHUT_WR)
        sender.join()
        assert isinstance(parent.connection.receive(), Close)


def send_until_refused(parent: Parent, item: ismrmrd.Acquisition) -> None:
    for _ in range(300):
        try:
            parent.send(item)
        except PeerVanished:
            return


def test_a_vanished_parent_ends_the_child_without_spinning():
    with Parent(inner(*PREVIEW)) as parent:
        parent.send(acquisition(0))
        time.sleep(0.2)
        parent.sock.shutdown(socket.SHUT_RDWR)
        parent.child.wait(30)


@pytest.mark.slow
def test_a_parent_that_vanishes_after_its_close_ends_what_still_computes():
    properties = "".join(
        f'<property name="{name}" value="{value}" />'
        for name, value in {"prior": "head_unet", "samples": 1, "steps": 100_000}.items()
    )
    solver = f'<gadget name="DiffusionSolver">{properties}</gadget><gadget name="ImageExport" />'
    chain = inner("NoisePrewhitening", *PREVIEW).replace(b'<gadget name="ImageExport" />', solver.encode())
    noise = acquisition(0, channels=2, samples=16)
    noise.setFlag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
    with Parent(chain) as parent:
        parent.send(noise, *fully_sampled(), Close())
        assert isinstance(parent.connection.receive(), ismrmrd.Image)  # the preview
        parent.sock.shutdown(socket.SHUT_RDWR)
        parent.child.wait(20)
