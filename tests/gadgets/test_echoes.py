"""What the echoes of a slice share."""

from __future__ import annotations

import pytest

from gadgets import echoes
from gadgets.echoes import SharedByEchoes, announced_echoes

from phantom_scan import Phantom, cartesian
from scans import encoding_xml, header, te

PHANTOM = Phantom.scanned(cartesian(range(2)))


def frame(contrast=0, slice=0, **counters):
    made = PHANTOM.frame()
    for name, value in {"contrast": contrast, "slice": slice, **counters}.items():
        setattr(made.reference.idx, name, value)
    return made


def contrasts(number) -> str:
    return encoding_xml(limits={"contrast": (0, number - 1, 0)})


@pytest.mark.parametrize(("head", "number"), [
    (header(), None), (header(after=te(4)), None), (header(after=te(4, 9)), 2), (header(contrasts(3)), 3),
    (header(contrasts(1)), None), (header(contrasts(1), after=te(4, 9)), 2), (header(contrasts(1), contrasts(4)), 4),
])  # fmt: skip
def test_echo_times_and_limits_announce_echoes(head, number):
    assert announced_echoes(head) == number


def test_the_first_echo_makes_it_for_all():
    shared = SharedByEchoes(header(after=te(4, 9, 15)))
    made = iter(range(10))
    order = [(0, 0), (0, 1), (1, 0), (2, 0), (1, 1), (2, 1)]
    found = [shared.of(frame(contrast, number), lambda: next(made)) for contrast, number in order]
    assert found == [(0, 0), (1, 0), (0, 0), (0, 0), (1, 0), (1, 0)]


@pytest.mark.parametrize("counter", ["slice", "repetition", "set", "phase", "average"])
def test_other_counters_are_other_images(counter):
    shared = SharedByEchoes(header(after=te(4, 9)))
    made = iter(range(10))
    assert [shared.of(frame(**{counter: value}), lambda: next(made))[0] for value in (0, 1)] == [0, 1]


def test_it_is_forgotten_with_the_last_echo():
    shared = SharedByEchoes(header(after=te(4, 9)))
    for contrast in (0, 1):
        shared.of(frame(contrast), lambda: "first")
    assert not shared._made
    assert shared.of(frame(), lambda: "again") == ("again", 0)


def test_only_so_much_is_remembered(monkeypatch):
    monkeypatch.setattr(echoes, "REMEMBERED", 2)
    shared = SharedByEchoes(header(after=te(4, 9)))
    for number in range(5):
        shared.of(frame(slice=number), lambda: number)  # noqa: B023
    assert len(shared._made) == len(shared._uses) == 2
    assert shared.of(frame(1, slice=4), lambda: None) == (4, 0)


def test_without_an_announcement_every_frame_has_its_own():
    shared = SharedByEchoes(header())
    assert [shared.of(frame(contrast), lambda: contrast) for contrast in (0, 1)] == [(0, 0), (1, 1)]  # noqa: B023
    assert not shared._made
