import time

import ismrmrd
import pytest

from gadgets.frame import Frame
from gadgets.gadget import Gadget, Session
from pipelines.chain import Chain
from pipelines.errors import GadgetError, PeerVanished
from pipelines.session import read_header

from mrd_items import HEADER_XML, acquisition


class Double(Gadget[ismrmrd.Acquisition]):
    """Yields each acquisition twice, and one more at the end."""

    takes = ismrmrd.Acquisition

    def take(self, item):
        yield item
        yield item

    def finish(self):
        yield acquisition(99)


class Slow(Gadget[ismrmrd.Acquisition]):
    """Works for 20 ms before each of two results."""

    takes = ismrmrd.Acquisition

    def take(self, item):
        for _ in range(2):
            time.sleep(0.02)
            yield item


class Renames(Gadget[Frame]):
    """Changes the header for those after it."""

    takes = Frame

    def open(self, session):
        super().open(session)
        session.header = read_header(HEADER_XML.replace("<x>16</x>", "<x>12</x>"))


class Matrix(Gadget[Frame]):
    """Refuses a header with x = 12."""

    takes = Frame

    def open(self, session):
        if session.header.encoding[0].encodedSpace.matrixSize.x == 12:
            raise ValueError("expected x = 16, got 12")


def chain(*gadgets) -> Chain:
    return Chain(gadgets, Session(read_header(HEADER_XML)))


def test_items_travel_to_the_end_before_the_next_is_asked_for():
    events = []

    def source():
        for i in range(2):
            events.append(f"in {i}")
            yield acquisition(i)

    for item in chain(Double()).run(source()):
        events.append(f"out {item.scan_counter}")
    assert events == ["in 0", "out 0", "out 0", "in 1", "out 1", "out 1", "out 99"]


def test_what_a_gadget_yields_at_the_end_passes_through_those_after_it():
    out = [item.scan_counter for item in chain(Double(), Double()).run([acquisition(1)])]
    assert out == [1, 1, 1, 1, 99, 99, 99]


def test_time_is_counted_inside_the_gadget_only():
    slow = chain(Slow(), Double())
    for _ in slow.run([acquisition(0)]):
        time.sleep(0.05)
    inside, after = slow.timings
    assert 0.04 <= inside.seconds < 0.1
    assert after.seconds < 0.02
    assert (inside.items, after.items) == (1, 2)


def test_a_gadget_sees_the_header_that_those_before_it_left():
    chain(Matrix(), Renames())
    with pytest.raises(GadgetError, match="Matrix failed on the header: expected x = 16, got 12"):
        chain(Renames(), Matrix())


def test_a_client_that_is_gone_is_not_the_fault_of_the_gadget_that_meets_it():
    class Tells(Gadget[ismrmrd.Acquisition]):
        takes = ismrmrd.Acquisition

        def take(self, item):
            self.session.require_client()
            yield item

    def require_client():
        raise PeerVanished("the peer is gone")

    running = Chain([Tells()], Session(read_header(HEADER_XML), require_client=require_client))
    with pytest.raises(PeerVanished, match=r"^the peer is gone$"):
        list(running.run([acquisition(0)]))


def test_unknown_properties_are_refused():
    with pytest.raises(TypeError, match="Double has no property speed"):
        Double(speed=3)
