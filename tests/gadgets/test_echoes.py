"""Which frames are echoes of one another."""

from __future__ import annotations

import pytest

from gadgets.echoes import EchoKey, announced_echoes

from phantom_scan import Phantom, cartesian
from scans import encoding_xml, header, te

PHANTOM = Phantom.scanned(cartesian(range(2)))


def frame(**counters):
    made = PHANTOM.frame()
    for name, value in counters.items():
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


@pytest.mark.parametrize("counter", ["slice", "repetition", "set", "phase", "average"])
def test_other_counters_are_other_images(counter):
    assert EchoKey.of(frame(**{counter: 1})) != EchoKey.of(frame())


def test_contrasts_are_echoes_of_one_another():
    assert EchoKey.of(frame(contrast=2)) == EchoKey.of(frame())
