"""What the monitor answers, as Prometheus and a container's health check read it."""

import logging
import re
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipelines.errors import SpinstreamError
from pipelines.monitor import Monitor, ServerStatus, SessionStatus, Totals
from pipelines.streams.progress import Outcome, Progress

IDLE = ServerStatus(alive=True, ready=True, reason="", draining=False, places=16)
FIRST = SessionStatus(
    number=1,
    progress=Progress(
        acquisitions=1000,
        waveforms=10,
        frames=4,
        images=8,
        gadgets={"CoilMaps": (0.5, 4), "CgSense": (2.0, 4)},
        at=("CgSense", "slice 3 of Jane Doe", 1.5),
        buffered_bytes=4096,
        memory_bytes=1 << 30,
    ),
    recorded_bytes=5000,
    backlog_bytes=3000,
)
SECOND = SessionStatus(
    number=2,
    progress=Progress(acquisitions=1, gadgets={"CgSense": (1.0, 1)}, at=("CgSense", "a", 60.0), memory_bytes=1 << 20),
    recorded_bytes=70,
    backlog_bytes=60,
    recording_failed=True,
)


@pytest.fixture
def monitor():
    """Starts monitors of a list whose last entry is the status; gives a function that asks for a page."""
    monitors = []

    def start(status):
        monitor = Monitor("127.0.0.1", 0, status)
        monitors.append(monitor)
        monitor.__enter__()

        def get(path):
            try:
                with urllib.request.urlopen("http://{}:{}{}".format(*monitor.address, path), timeout=5) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, error.read().decode()

        return get

    yield start
    for monitor in monitors:
        monitor.__exit__(None, None, None)


def metrics(text):
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_of_running_sessions_add_up_to_those_that_have_ended(monitor):
    totals = Totals().including(FIRST).ended(Outcome.DONE).including(SECOND).ended(Outcome.DIED)
    status = replace(IDLE, sessions=[FIRST, SECOND], totals=totals, waiting_for_turn=3, recordings_free_bytes=10**9)
    get = monitor(lambda: status)
    status, text = get("/metrics")
    assert status == 200
    got = metrics(text)
    expected = {
        "spinstream_ready": 1,
        "spinstream_draining": 0,
        "spinstream_session_places": 16,
        "spinstream_sessions_active": 2,
        "spinstream_acquisitions_total": 2002,
        "spinstream_waveforms_total": 20,
        "spinstream_frames_total": 8,
        "spinstream_images_total": 16,
        "spinstream_recorded_bytes_total": 10140,
        "spinstream_recording_failures_total": 2,
        "spinstream_recordings_free_bytes": 1e9,
        "spinstream_backlog_bytes": 3060,
        "spinstream_sessions_waiting_for_turn": 3,
        "spinstream_buffer_bytes": 4096,
        "spinstream_memory_bytes": (1 << 30) + (1 << 20),
    }
    assert {name: got[name,] for name in expected} == expected
    assert got["spinstream_gadget_latency_seconds_sum", "CgSense"] == 6.0
    assert got["spinstream_gadget_latency_seconds_count", "CgSense"] == 10
    assert got["spinstream_gadget_latency_seconds_sum", "CoilMaps"] == 1.0
    assert got["spinstream_gadget_at_work_seconds", "CgSense"] == 60.0
    outcomes = {outcome.value: got["spinstream_sessions_total", outcome.value] for outcome in Outcome}
    assert outcomes == {"done": 1, "failed": 0, "vanished": 0, "died": 1, "refused": 0, "silent": 0}
    errors = {name[1]: value for name, value in got.items() if name[0] == "spinstream_errors_total"}
    assert errors == {"failed": 0, "vanished": 0, "died": 1, "refused": 0, "recording": 2}
    assert got["process_resident_memory_bytes",] > 1 << 20


def test_metrics_of_an_idle_server_that_records_nothing(monitor):
    got = metrics(monitor(lambda: IDLE)("/metrics")[1])
    assert got["spinstream_sessions_active",] == got["spinstream_acquisitions_total",] == 0
    assert ("spinstream_recordings_free_bytes",) not in got


def test_nothing_of_a_patient_is_shown(monitor):
    _, text = monitor(lambda: replace(IDLE, sessions=[FIRST]))("/metrics")
    assert "CgSense" in text
    assert "Doe" not in text


def test_counters_do_not_fall_when_a_session_ends(monitor):
    statuses = [replace(IDLE, sessions=[FIRST]), replace(IDLE, totals=Totals().including(FIRST).ended(Outcome.DONE))]
    get = monitor(lambda: statuses.pop(0))
    before, after = metrics(get("/metrics")[1]), metrics(get("/metrics")[1])
    assert before["spinstream_acquisitions_total",] == after["spinstream_acquisitions_total",] == 1000
    assert before["spinstream_memory_bytes",] > after["spinstream_memory_bytes",] == 0


@pytest.mark.parametrize(
    ("status", "health", "readiness"),
    [
        (IDLE, (200, "alive\n"), (200, "ready\n")),
        (
            replace(IDLE, ready=False, reason="all 16 sessions are in use"),
            (200, "alive\n"),
            (503, "all 16 sessions are in use\n"),
        ),
        (
            replace(IDLE, alive=False, ready=False, reason="clients are not accepted"),
            (503, "clients are not accepted any more\n"),
            (503, "clients are not accepted\n"),
        ),
    ],
)
def test_health_and_readiness(monitor, status, health, readiness):
    get = monitor(lambda: status)
    assert get("/healthz") == health
    assert get("/readyz") == readiness


def test_other_pages_are_not_there(monitor):
    assert monitor(lambda: IDLE)("/") == (404, "expected /metrics, /healthz or /readyz\n")


def test_a_status_that_fails_is_logged_and_the_monitor_goes_on(monitor, caplog):
    statuses = [None, IDLE]
    get = monitor(lambda: statuses.pop(0))
    with caplog.at_level(logging.ERROR, "spinstream"):
        assert get("/readyz") == (500, "a defect of spinstream; see its log\n")
    assert "the monitor failed at /readyz" in caplog.text
    assert get("/readyz") == (200, "ready\n")


def test_a_port_in_use_is_named():
    with Monitor("127.0.0.1", 0, lambda: IDLE) as first:
        port = first.address[1]
        with pytest.raises(SpinstreamError, match=f"cannot monitor at 127.0.0.1:{port}: Address already in use"):
            Monitor("127.0.0.1", port, lambda: IDLE)
    with Monitor("127.0.0.1", port, lambda: IDLE) as again:
        assert again.address[1] == port


def test_the_operators_page_lists_every_metric(monitor):
    _, text = monitor(lambda: replace(IDLE, sessions=[FIRST], recordings_free_bytes=1))("/metrics")
    page = (Path(__file__).parents[2] / "docs" / "service.md").read_text()
    documented = set(re.findall(r"^\| `(spinstream_\w+)", page, re.MULTILINE))
    assert documented == {re.sub("_(count|sum)$", "", name[0]) for name in metrics(text) if name[0].startswith("spin")}
