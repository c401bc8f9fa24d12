"""The log's two forms, and which session a line is of."""

import contextvars
import json
import logging
import threading
from datetime import datetime, timedelta, timezone

import pytest

from pipelines.logs import configure, in_session

log = logging.getLogger("spinstream")


@pytest.fixture(autouse=True)
def logging_as_before():
    root = logging.getLogger()
    handlers, levels = root.handlers[:], (root.level, log.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    log.setLevel(levels[1])


def lines(capsys):
    return capsys.readouterr().err.splitlines()


def test_text_has_the_session_where_there_is_one(capsys):
    configure()
    log.info("listening")
    with in_session(7):
        log.warning("%d images", 3)
        logging.getLogger("somebody.else").warning("hot")
    log.info("over")
    texts = [line.split(" ", 2)[2] for line in lines(capsys)]
    assert texts == ["INFO listening", "WARNING session 7: 3 images", "WARNING session 7: hot", "INFO over"]


def test_json_lines_say_when_in_utc_how_bad_which_session_and_why(capsys):
    configure(form="json")
    with in_session(7):
        try:
            raise ValueError('a "quoted"\nreason')
        except ValueError:
            log.exception("gadget %s failed", "Fail")
    log.info("over")
    first, second = map(json.loads, lines(capsys))
    assert first["level"] == "ERROR" and first["session"] == 7 and first["message"] == "gadget Fail failed"
    assert first["exception"].startswith("Traceback") and first["exception"].endswith('ValueError: a "quoted"\nreason')
    at = datetime.fromisoformat(first["time"])
    assert at.utcoffset() == timedelta(0) and abs(datetime.now(timezone.utc) - at) < timedelta(minutes=1)
    assert second.keys() == {"time", "level", "message"}


def test_what_a_peer_sends_can_neither_forge_a_line_nor_steer_a_terminal(capsys):
    configure()
    log.info("the client says: %s", "hello\n2026-01-01 00:00:00,000 ERROR all is lost\r\x1b[2J\tend")
    first, second = lines(capsys)
    assert first.endswith("the client says: hello")
    assert second == r"    2026-01-01 00:00:00,000 ERROR all is lost\x0d\x1b[2J" + "\tend"


def test_levels(capsys):
    configure(logging.DEBUG)
    log.debug("fine")
    logging.getLogger("somebody.else").info("chatter")
    configure(logging.ERROR)
    log.warning("quiet")
    assert [line.split(" ", 3)[3] for line in lines(capsys)] == ["fine"]


def test_sessions_in_threads_are_told_apart(capsys):
    configure()
    together = threading.Barrier(2)

    def serve(number):
        with in_session(number):
            together.wait(5)
            helper = threading.Thread(target=contextvars.copy_context().run, args=(log.info, "%d reads", number))
            helper.start()
            helper.join()
            log.info("%d works", number)

    threads = [threading.Thread(target=serve, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.info("nobody")
    texts = sorted(line.split(" ", 3)[3] for line in lines(capsys))
    expected = [f"session {number}: {number} {what}" for number in (1, 2) for what in ("reads", "works")]
    assert texts == ["nobody", *expected]


def test_a_process_with_one_session_at_a_time_has_it_in_every_thread(capsys):
    configure()

    def in_a_thread(text):
        thread = threading.Thread(target=log.info, args=(text,))
        thread.start()
        thread.join()

    with in_session(3, whole_process=True):
        in_a_thread("within")
    in_a_thread("after")
    assert [line.split(" ", 3)[3] for line in lines(capsys)] == ["session 3: within", "after"]
