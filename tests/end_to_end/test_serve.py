"""`spinstream serve` as an operator runs it: a process with recordings, a monitor, signals."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import ismrmrd
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipelines.recordings import Recordings
from pipelines.streams.file import open_raw
from pipelines.wire import ERROR, Close, ConfigFile, Connection, HeaderText, Text

from mrd_items import HEADER_XML, acquisition
from raw_client import converse, texts

SERVE = [sys.executable, "-m", "pipelines.cli", "serve", "--port", "0", "--device", "cpu"]
ITEMS = [acquisition(i, channels=2, samples=16) for i in range(8)]
ITEMS[-1].setFlag(ismrmrd.ACQ_LAST_IN_SLICE)


@contextlib.contextmanager
def serving(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen, tuple[str, int]]]:
    """A server's process and address; killed at the end if it lives."""
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen([*SERVE, *options], stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            host, _, port = process.stdout.readline().split()[-1].rpartition(":")
            yield process, (host, int(port))
        finally:
            process.kill()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


def get(port: int, page: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{page}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def metric(port: int, name: str) -> float:
    for family in text_string_to_metric_families(get(port, "/metrics")[1]):
        for sample in family.samples:
            if sample.name == name:
                return sample.value
    raise AssertionError(f"no metric {name}")


def test_a_server_from_start_to_kill(tmp_path):
    """One process for all claims, since each takes seconds to start."""
    recordings, port = tmp_path / "recordings", free_port()
    options = ["--record", str(recordings), "--monitor", f"127.0.0.1:{port}", "--log-format", "json"]
    with serving(tmp_path, *options) as (process, address):
        # A session brings its image, and is counted and recorded.
        got = converse(address, ConfigFile("preview"), HeaderText(HEADER_XML), *ITEMS)
        assert [type(m) for m in got if not isinstance(m, Text)] == [ismrmrd.Image], texts(got, ERROR)
        deadline = time.monotonic() + 10
        while metric(port, "spinstream_sessions_active"):
            assert time.monotonic() < deadline
        assert metric(port, "spinstream_acquisitions_total") == 8
        assert metric(port, "spinstream_images_total") == 1
        assert get(port, "/healthz")[0] == get(port, "/readyz")[0] == 200
        with socket.create_connection(address) as sock, Connection(sock, 20.0) as connection:
            for message in (ConfigFile("preview"), HeaderText(HEADER_XML), *ITEMS[:5]):
                connection.send(message)
            # SIGTERM: no new clients, and the running session may end.
            time.sleep(1.0)
            process.send_signal(signal.SIGTERM)
            while get(port, "/readyz")[0] == 200:
                assert time.monotonic() < deadline + 10
            assert get(port, "/readyz") == (503, "the server is being stopped\n")
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address)
            # kill -9: the data that it had read are there.
            helpers = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            process.wait()
    assert psutil.wait_procs(helpers, timeout=10)[1] == []
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert {1, 2} <= {line.get("session") for line in lines}
    left = Recordings(recordings)
    assert [entry.state for entry in left.entries()][-1] == "journal"
    left.recover()
    with open_raw(left.entries()[-1].path) as raw:
        assert [item.scan_counter for item in raw.items()] == [0, 1, 2, 3, 4]


def test_a_draining_server_finishes_its_sessions(tmp_path):
    with serving(tmp_path) as (process, address):
        with socket.create_connection(address) as sock, Connection(sock, 20.0) as connection:
            for message in (ConfigFile("preview"), HeaderText(HEADER_XML), *ITEMS[:5]):
                connection.send(message)
            time.sleep(1.0)
            process.send_signal(signal.SIGTERM)
            for message in (*ITEMS[5:], Close()):
                connection.send(message)
            got = []
            while not isinstance(message := connection.receive(), Close):
                got.append(message)
        assert ismrmrd.Image in [type(message) for message in got]
        assert process.wait(20) == 0
