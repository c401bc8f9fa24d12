"""What becomes of a session, and of the others, when its process dies, hangs or takes too much."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from multiprocessing import forkserver

import ismrmrd
import psutil
import pytest

from pipelines.recordings import Recordings
from pipelines.streams.file import open_raw
from pipelines.streams.limits import Limits
from pipelines.streams.server import Server
from pipelines.streams.workers import Workers
from pipelines.wire import ERROR, NOTE, Close, ConfigFile, ConfigText, Connection, HeaderText

from mrd_items import HEADER_XML, acquisition, configuration
from raw_client import converse, texts
from recorded import recorded

COUNT = ConfigText(configuration("Count"))
HEADER = HeaderText(HEADER_XML)
ITEMS = [acquisition(i) for i in range(5)]

FAULTS = {
    "Die": "the process of this session was ended by SIGSEGV",
    "Hang": "Hang was at work on acquisition 2 (slice 0, step 2) for more than 1.5 s, the limit of this server",
    "Hog": "Hog ran out of memory on acquisition 2 (slice 0, step 2):",
}


@pytest.fixture
def recordings(tmp_path) -> Recordings:
    return Recordings(tmp_path / "recordings")


def finished(recordings: Recordings, seconds: float = 20.0):
    """The one recording, once it is an .h5 file."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        entries = recordings.entries()
        if entries and all(entry.state == "finished" for entry in entries):
            (entry,) = entries
            return entry
        time.sleep(0.05)
    pytest.fail(f"not finished: {recordings.entries()}")


@pytest.mark.parametrize("gadget", FAULTS)
def test_a_fault_ends_one_session_with_its_reason_and_the_data_are_recorded(start_server, recordings, gadget):
    address = start_server(recordings, work_s=1.5, memory_bytes=4 << 30)
    with socket.create_connection(address) as other, Connection(other, 10.0) as connection:
        for message in (ConfigText(configuration("ToImage")), HEADER, acquisition(0)):
            connection.send(message)
        got = converse(address, ConfigText(configuration(gadget)), HEADER, *ITEMS)
        (reason,) = texts(got, ERROR)
        assert reason.startswith(FAULTS[gadget])
        assert [m.scan_counter for m in got if isinstance(m, ismrmrd.Acquisition)] == [0, 1]
        entry = next(entry for entry in recordings.entries() if entry.path.stem.endswith("s0002"))
        connection.send(acquisition(6))
        assert [connection.receive().image_index for _ in range(2)] == [1, 7]
        connection.send(Close())
        while not isinstance(connection.receive(), Close):
            pass
    with open_raw(entry.path if entry.path.exists() else entry.path.with_suffix(".h5")) as raw:
        assert [item.scan_counter for item in raw.items()] == [0, 1, 2, 3, 4]
        assert raw.header_xml == HEADER_XML


def test_data_that_come_after_the_process_died_are_recorded(start_server, recordings):
    address = start_server(recordings)
    with socket.create_connection(address) as sock, Connection(sock, 10.0) as connection:
        for message in (ConfigText(configuration("Die")), HEADER, *ITEMS[:3]):
            connection.send(message)
        while not isinstance(connection.receive(), Close):
            pass
        for item in ITEMS[3:]:
            connection.send(item)
        connection.send(Close())
    assert finished(recordings).acquisitions == 5


def test_a_recording_replays_to_the_images_of_the_session(start_server, recordings):
    got = converse(start_server(recordings), ConfigText(configuration("ToImage")), HEADER, *ITEMS)
    images = [m for m in got if isinstance(m, ismrmrd.Image)]
    with open_raw(finished(recordings).path) as raw:
        again = converse(start_server(), raw.config, HeaderText(raw.header_xml), *raw.items())
    assert [m.data.max() for m in again if isinstance(m, ismrmrd.Image)] == [m.data.max() for m in images] != []


def test_what_waits_in_a_recording_is_shown(site, recordings):
    """The queue of a session that is behind is its journal, of which the session itself holds little."""
    items = [acquisition(number, samples=1 << 15) for number in range(16)]
    sent = len(recorded(*items))
    server = Server("127.0.0.1", 0, site, Limits(buffer_bytes=1 << 20, work_s=60.0), recordings)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    with socket.create_connection(server.server_address[:2]) as sock, Connection(sock, 20.0) as connection:
        for message in (ConfigText(configuration("Hang")), HEADER, *items):
            connection.send(message)
        assert becomes(lambda: server.status().sessions[0].recorded_bytes > sent)
        assert becomes(lambda: sent > server.status().sessions[0].backlog_bytes > sent // 2)
        server.shutdown()
        assert server.dismiss(5.0)
    server.server_close()
    thread.join()


def becomes(condition, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_a_recording_that_cannot_begin_is_told_and_the_images_come(start_server, tmp_path):
    (tmp_path / "file").touch()
    address = start_server(Recordings(tmp_path / "file" / "folder"))
    got = converse(address, ConfigText(configuration("ToImage")), HEADER, acquisition(0))
    assert "cannot be recorded to" in texts(got, ERROR)[0]
    assert [type(m) for m in got].count(ismrmrd.Image) == 1


def test_a_full_disk_stops_the_recording_and_not_the_images(start_server, recordings, monkeypatch):
    def full(descriptor, data, write=os.write):
        if len(data) > 10_000:
            raise OSError(28, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    items = [acquisition(i, samples=4096) for i in range(8)]
    got = converse(start_server(recordings), ConfigText(configuration("ToImage")), HEADER, *items)
    assert [text for text in texts(got, ERROR) if "No space left" in text or "full" in text]
    assert [type(m) for m in got].count(ismrmrd.Image) == 8


def test_a_worker_serves_again_after_a_good_session_and_not_after_a_bad_one(start_server):
    address = start_server()
    which = ConfigText(configuration("WhichProcess"))

    def process(*messages) -> str:
        time.sleep(0.5)  # the last worker is idle again a moment after its client has gone
        return next(t for t in texts(converse(address, *messages), NOTE) if t.startswith("process"))

    first = process(which, HEADER, acquisition(0))
    assert process(which, HEADER, acquisition(0)) == first
    failing = ConfigText(configuration("WhichProcess", "Fail"))
    assert process(failing, HEADER, *ITEMS) == first
    assert process(which, HEADER, acquisition(0)) != first


def test_a_worker_that_was_killed_while_idle_is_replaced(start_server):
    address = start_server()
    which = ConfigText(configuration("WhichProcess"))
    (told, *_) = texts(converse(address, which, HEADER, acquisition(0)), NOTE)
    worker = psutil.Process(int(told.split()[1]))
    time.sleep(0.5)  # it is idle again a moment after its client has gone
    worker.kill()
    psutil.wait_procs([worker], timeout=10)
    assert texts(converse(address, COUNT, HEADER, acquisition(0)), NOTE)[0] == "counted 1"


def test_a_session_beyond_the_places_hears_so_while_another_hangs(start_server):
    address = start_server(sessions=1, work_s=1.5)
    with socket.create_connection(address) as sock, Connection(sock, 10.0) as connection:
        for message in (ConfigText(configuration("Hang")), HEADER, *ITEMS):
            connection.send(message)
        assert connection.receive().scan_counter == 0
        assert "all 1 sessions" in texts(converse(address, ConfigFile("preview"), HEADER), ERROR)[0]
        while not isinstance(connection.receive(), Close):
            pass


def test_a_client_that_does_not_read_ends_with_its_patience_and_frees_its_place(start_server, recordings):
    address = start_server(recordings, sessions=1, patience_s=0.5)
    with socket.create_connection(address) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
        with Connection(sock, 5.0) as connection:
            for message in (ConfigText(configuration("BigImages")), HEADER, *ITEMS):
                connection.send(message)
            assert_place_becomes_free(address)


def test_a_client_that_reads_slowly_gets_all(start_server):
    """Each image takes longer than the patience; only silence is measured by it."""
    address = start_server(patience_s=0.5)
    with socket.create_connection(address) as sock, Connection(sock, 10.0) as connection:
        for message in (ConfigText(configuration("BigImages")), HEADER, *ITEMS[:2], Close()):
            connection.send(message)
        got = 0
        while data := sock.recv(1 << 20):
            got += len(data)
            time.sleep(0.05)
    assert got > 2 * (16 << 20)


def test_a_stopping_server_does_not_wait_for_a_client_that_does_not_read(site):
    server = Server("127.0.0.1", 0, site, Limits(patience_s=60))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    with socket.create_connection(server.server_address[:2]) as sock, Connection(sock, 5.0) as connection:
        for message in (ConfigText(configuration("BigImages")), HEADER, *ITEMS):
            connection.send(message)
        time.sleep(0.5)
        server.shutdown()
        began = time.monotonic()
        assert server.dismiss(1.0)
        assert time.monotonic() - began < 5
    server.server_close()
    thread.join()


@pytest.mark.parametrize("gadget", ["Forks", "LeavesThread"])
def test_what_a_gadget_leaves_behind_keeps_no_session_and_no_process(start_server, gadget):
    """A child that holds the worker's sockets, a thread that never ends."""
    address = start_server()
    got = converse(address, ConfigText(configuration("WhichProcess", gadget, "Die")), HEADER, *ITEMS)
    assert "SIGSEGV" in texts(got, ERROR)[0]
    failing = converse(address, ConfigText(configuration("WhichProcess", gadget, "Fail")), HEADER, *ITEMS)
    worker = int(texts(failing, NOTE)[0].split()[1])
    assert_gone(worker)


def test_a_session_for_which_no_process_can_be_started_is_told_so_and_recorded(start_server, recordings, monkeypatch):
    address = start_server(recordings)

    def fail(self, number):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Workers, "begin", fail)
    got = converse(address, COUNT, HEADER, *ITEMS)
    assert texts(got, ERROR) == ["no process can be started for this session: Too many open files"]
    monkeypatch.undo()
    assert finished(recordings).acquisitions == 5


@pytest.mark.slow  # another such process takes seconds to start
def test_workers_can_be_ended_though_the_process_that_they_were_forked_from_is_gone(start_server):
    address = start_server(work_s=2.0)
    with socket.create_connection(address) as sock, Connection(sock, 20.0) as connection:
        for message in (ConfigText(configuration("Hang")), HEADER, *ITEMS):
            connection.send(message)
        assert connection.receive().scan_counter == 0
        os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
        assert texts(converse(address, COUNT, HEADER, ITEMS[0]), NOTE)[0] == "counted 1"
        got = []
        while not isinstance(message := connection.receive(), Close):
            got.append(message)
    assert "for more than 2 s" in texts(got, ERROR)[0]


def assert_place_becomes_free(address) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not texts(converse(address, COUNT, HEADER, ITEMS[0]), ERROR):
            return
        time.sleep(0.1)
    pytest.fail("the place is still taken")


def assert_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.05)
    pytest.fail("the process lives on")
