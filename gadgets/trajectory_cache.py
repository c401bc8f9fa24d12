"""What is built for a trajectory, once for all frames, slices and sessions that have the same one."""

from __future__ import annotations

from gadgets.frame import Frame
from gadgets.gadget import Session
from recon_core.cache import content_key
from recon_core.operators.encoding import Encoding
from recon_core.operators.sampling import Sampling, sampling_operator


def encoding_of(frame: Frame, session: Session) -> Encoding:
    """The encoding of a frame that knows no field; keeps its kernels once they were asked for."""
    trajectory, shape = frame.samples.trajectory, frame.space.shape
    key = content_key("encoding", trajectory, shape)
    return session.cache.get(key, lambda: Encoding(sampling_operator(trajectory, shape)))


def sampling_of(frame: Frame, session: Session) -> Sampling:
    """The sampling operator of a frame."""
    return encoding_of(frame, session).sampling
