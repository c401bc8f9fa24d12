"""Every error that spinstream raises on purpose.

SpinstreamError
├── PipelineError       a pipeline definition or a property that cannot work: file, line, what was expected
├── GadgetError         a gadget failed on an item: which gadget, which item, the cause
├── ClusterError        frames could not be computed elsewhere: where, and what to do
├── FileError           a raw file that cannot be read or written
└── WireError           the conversation with the peer broke
    ├── MalformedMessage    the peer sent what no MRD peer sends
    ├── PeerVanished        the connection ended before the peer said close
    ├── PeerIdle            nothing could be read or written for too long
    └── RemoteError         the peer reported an error of its own
"""

from __future__ import annotations


class SpinstreamError(Exception):
    """Base of all: its text is written for the person at the console."""


class PipelineError(SpinstreamError):
    """A pipeline definition that cannot run; the text has one line per problem."""


class GadgetError(SpinstreamError):
    """A gadget failed."""


class ClusterError(SpinstreamError):
    """Frames that should have been computed on other machines were not."""


class FileError(SpinstreamError):
    """A file that cannot be read or written as asked."""


class WireError(SpinstreamError):
    """The conversation with the peer broke."""


class MalformedMessage(WireError):
    """The peer sent what no MRD peer sends."""


class PeerVanished(WireError):
    """The connection ended before the peer said close."""


class PeerIdle(WireError):
    """Nothing could be read or written for longer than the connection's patience."""


class RemoteError(WireError):
    """The peer reported an error of its own."""
