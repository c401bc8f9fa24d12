import time
from contextlib import contextmanager

import ismrmrd
import pytest
import torch

from gadgets.frame import Frame, Samples, Space
from gadgets.gadget import Gadget, Session
from pipelines.chain import Chain
from pipelines.errors import GadgetError, PeerVanished
from pipelines.header import read_header

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


class Frames(Gadget[ismrmrd.Acquisition]):
    """Makes a frame of each acquisition."""

    takes = ismrmrd.Acquisition

    def take(self, item):
        yield frame(item)


class Watched(Gadget[Frame]):
    """Writes down what the chain is at, and lets each frame pass and an image leave."""

    takes = Frame

    def __init__(self, seen):
        self.seen = seen

    def take(self, item):
        self.seen.append(self.chain.at)
        yield ismrmrd.Image()
        yield item


def frame(reference: ismrmrd.Acquisition) -> Frame:
    space = Space((1, 4, 4), (1.0, 4.0, 4.0), (1, 4, 4), (1.0, 4.0, 4.0))
    return Frame(Samples(torch.zeros(1, 1, 4), torch.zeros(2, 1, 4)), torch.zeros(1, 4), space, reference.getHead())


def test_a_chain_counts_what_came_what_became_a_frame_and_what_left():
    running = chain(Frames(), Watched([]), Watched([]))
    for gadget in running._gadgets[1:]:
        gadget.chain = running
    list(running.run([acquisition(0), acquisition(1)]))
    assert running.taken == {"Acquisition": 2}
    assert running.frames == 2
    assert running.let_out == {"Image": 4}


def test_a_chain_says_which_gadget_is_at_work_on_what_and_since_when():
    watched = Watched([])
    watched.chain = running = chain(Frames(), watched)
    began = time.monotonic()
    for _ in running.run([acquisition(0)]):
        assert running.at is None
    ((gadget, what, since),) = watched.seen
    assert (gadget, what) == ("Watched", frame(acquisition(0)).label)
    assert began <= since <= time.monotonic()


def test_gadgets_that_take_frames_compute_in_their_turn_and_nothing_is_sent_in_it():
    held = []

    @contextmanager
    def turn():
        held.append(True)
        yield
        held.pop()

    class Asks(Gadget[Frame]):
        takes = Frame

        def take(self, item):
            assert held
            yield ismrmrd.Image()
            assert held

    session = Session(read_header(HEADER_XML), turn=turn)
    for _ in Chain([Frames(), Asks()], session).run([acquisition(0)]):
        assert not held


def test_a_gadget_that_is_done_with_the_device_leaves_its_turn_to_others_and_takes_another_one():
    said = []

    @contextmanager
    def turn():
        said.append("begins")
        yield
        said.append("ends")

    class Leaves(Gadget[Frame]):
        takes = Frame

        def take(self, item):
            with self.session.without_turn():
                said.append("others")
            yield item
            if item.reference.scan_counter:
                with self.session.without_turn():
                    raise ValueError("no such thing")

    session = Session(read_header(HEADER_XML), turn=turn)
    running = Chain([Frames(), Leaves()], session).run([acquisition(0), acquisition(1)])
    with pytest.raises(GadgetError, match="no such thing"):
        list(running)
    first = ["begins", "ends", "others", "begins", "ends"]
    assert said == [*first, "begins", "ends", *first, "begins", "ends"]
