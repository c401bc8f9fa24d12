"""What a machine does that computes parts of other machines' chains."""

from __future__ import annotations

import platform
import threading
from collections import OrderedDict
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from functools import lru_cache

from gadgets.frame import Frame, SeriesImage
from gadgets.gadget import Session
from pipelines.chain import Chain
from pipelines.errors import ClusterError
from pipelines.executors.executor import Part, Timings, versions
from pipelines.executors.parcel import Parcel
from pipelines.session import Site

MOST_OPEN = 8
"""Parts of sessions that did not say that they are over."""


class PartSolver:
    """Keeps parts open from one frame to the next, each in the thread that opened it.

    Args:
        site: of this machine.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._open: OrderedDict[tuple[str, int], tuple[Chain, Session]] = OrderedDict()
        self._lock = threading.Lock()

    def solve(
        self,
        part: Part,
        parcel: Parcel,
        noise_known: bool,
        tell: Callable[[str], None],
        require_client: Callable[[], object],
    ) -> tuple[Parcel, Timings]:
        """Runs one frame through a part, to its end.

        Args:
            part: what to run.
            parcel: the frame.
            noise_known: see `Session`.
            tell: takes what gadgets tell.
            require_client: raises when nobody wants the result any more.

        Returns:
            The items without the tensors that came with the frame, and what each gadget took.

        Raises:
            GadgetError: a gadget failed.
            ClusterError: this machine has other versions than that of the session.
        """
        _require_same(part)
        chain, session = self._opened(part)
        session.tell, session.require_client, session.noise_known = tell, require_client, noise_known
        frame, known = parcel.open(session.device)
        for timing in chain.timings:
            timing.seconds, timing.items = 0.0, 0
        wanted = (item for item in chain.run([frame]) if part.frames_wanted or not isinstance(item, Frame))
        items, _ = Parcel.of([_as_it_is_now(item) for item in wanted], known)
        return items, [(timing.seconds, timing.items) for timing in chain.timings]

    def forget(self, key: str) -> None:
        """Drops a part whose session is over."""
        with self._lock:
            for place in [place for place in self._open if place[0] == key]:
                del self._open[place]

    def _opened(self, part: Part) -> tuple[Chain, Session]:
        place = part.key, threading.get_ident()
        with self._lock:
            if place in self._open:
                self._open.move_to_end(place)
                return self._open[place]
        session = Session(
            header=part.header,
            device=self._site.torch_device(),
            seed=part.seed,
            state_folder=self._site.state_folder,
            cache=self._site.cache,
        )
        chain = Chain([gadget(**values) for gadget, values in part.gadgets], session, outputs=(object,))
        with self._lock:
            self._open[place] = chain, session
            while len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)
        return chain, session


@lru_cache(maxsize=1)
def solver_of_this_machine() -> PartSolver:
    """With a cache that outlives sessions, and the device that there is."""
    return PartSolver(Site())


def _require_same(part: Part) -> None:
    if versions() != part.versions:
        theirs, ours = (", ".join(f"{name} {v}" for name, v in found.items()) for found in (part.versions, versions()))
        raise ClusterError(
            f"the worker on {platform.node()} has other versions ({ours}) than the machine of this session ({theirs}); "
            "install the same ones on both"
        )


def _as_it_is_now(item: object) -> object:
    """Later gadgets go on writing into the frame of an image, which would have left before they began."""
    if isinstance(item, SeriesImage):
        frame = copy(item.frame)
        frame.history = [*frame.history]
        return replace(item, frame=frame)
    return item
