"""What was built for a trajectory, for the next frames that have the same one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256
from typing import Generic, TypeVar

from gadgets.frame import Frame
from gadgets.gadget import Session
from recon_core.operators.sampling import Sampling, sampling_operator

T = TypeVar("T")

REMEMBERED = 4
"""Trajectories of interleaved slices are the same, those of contrasts may take turns; more would only cost memory."""


class TrajectoryCache(Generic[T]):
    """Builds something from the trajectory and the grid of a frame, once for all frames that share both."""

    def __init__(self, build: Callable[[Frame], T]) -> None:
        self._build = build
        self._built: OrderedDict[bytes, T] = OrderedDict()

    def of(self, frame: Frame) -> T:
        """What belongs to the trajectory of a frame."""
        trajectory = frame.samples.trajectory.cpu().contiguous()
        content = sha256(repr((trajectory.shape, frame.space.shape)).encode() + trajectory.numpy().tobytes()).digest()
        if content not in self._built:
            self._built[content] = self._build(frame)
        self._built.move_to_end(content)
        while len(self._built) > REMEMBERED:
            self._built.popitem(last=False)
        return self._built[content]


def sampling_of(frame: Frame, session: Session) -> Sampling:
    """The sampling operator of a frame, which all gadgets of a session share."""
    cache: TrajectoryCache[Sampling] = session.shared.setdefault("sampling", TrajectoryCache(_sampling))
    return cache.of(frame)


def _sampling(frame: Frame) -> Sampling:
    return sampling_operator(frame.samples.trajectory, frame.space.shape)
