"""What a gadget is: one stage of a stream, from items to items.

An item is an MRD acquisition, waveform or image, a `Frame`, or a `SeriesImage`. A gadget names the one type that it
takes; everything else passes by it unchanged and in order, so gadgets hold no type tests. The chain calls `open` once
before any data, `take` for each item of that type, and `finish` once at the end of the stream.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

import ismrmrd
import torch

from gadgets.property import Property
from recon_core.cache import ContentCache, content_key

ItemT = TypeVar("ItemT")
Header: TypeAlias = ismrmrd.xsd.ismrmrdHeader

log = logging.getLogger("spinstream")

CACHE_BYTES = 2**28
"""Of a session that belongs to no site."""


@dataclass
class Session:
    """What all gadgets of one measurement share.

    Attributes:
        header: the MRD header as the next gadget shall see it; a gadget that changes what the header describes (the
            matrix, say) replaces it in `open`.
        device: where tensors live.
        seed: of every random draw of the session; written into the image history.
        state_folder: what outlives a session, such as noise covariances by measurement.
        tell: says something to the person at the client (and to the log).
        history: what was decided for the whole session, one line each; ends up in the history of every frame.
        cache: of what is costly to build, by content; outlives the session where its site keeps one.
        require_client: raises when the client is gone; asked now and then by a gadget that computes for long.
        turn: gives a context that is held while a gadget that takes frames computes: sessions share a device by turns.
        without_turn: gives a context in which that turn is left to others, for a gadget that is done with the device.
        noise_known: whether frames hold noise of unit variance; false once prewhitening found no noise data.
    """

    header: Header
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0
    state_folder: Path = Path("state")
    tell: Callable[[str], None] = log.info
    history: list[str] = field(default_factory=list)
    cache: ContentCache = field(default_factory=lambda: ContentCache(CACHE_BYTES))
    require_client: Callable[[], object] = lambda: None
    turn: Callable[[], AbstractContextManager[object]] = nullcontext
    without_turn: Callable[[], AbstractContextManager[object]] = nullcontext
    noise_known: bool = True

    def generator(self, *purpose: str | int) -> torch.Generator:
        """A source of random draws that depends on the seed and on what it is for, not on what was drawn before."""
        digest = content_key("draws", self.seed, *purpose)
        return torch.Generator(device=self.device).manual_seed(int.from_bytes(digest[:8], "big"))


class Gadget(Generic[ItemT]):
    """One stage of a chain.

    Class attributes, declared by each gadget:
        takes: the item type that `take` receives.
        needs: what must stand before this gadget in the chain, as words that other gadgets add.
        adds, removes: what later gadgets find, or no longer find.
        per_frame: that frames may be computed on other machines, each by itself: what `take` and, after each frame,
            `finish` yield depends on the frame, the properties and the session, on no other frame, and on no file of
            the machine of the session. Only for gadgets that take frames.
    """

    takes: ClassVar[type]
    needs: ClassVar[frozenset[str]] = frozenset()
    adds: ClassVar[frozenset[str]] = frozenset()
    removes: ClassVar[frozenset[str]] = frozenset()
    per_frame: ClassVar[bool] = False

    session: Session

    def __init__(self, **values: Any) -> None:
        """Sets properties from typed values; those not named keep their defaults.

        Raises:
            TypeError: a value for a property that this gadget does not declare.
        """
        unknown = values.keys() - self.properties().keys()
        if unknown:
            raise TypeError(f"{type(self).__name__} has no property {', '.join(sorted(unknown))}")
        vars(self).update(values)

    @classmethod
    def properties(cls) -> Mapping[str, Property[Any]]:
        """The declared properties by name, in the order of declaration."""
        classes = reversed(cls.__mro__)
        return {name: value for c in classes for name, value in vars(c).items() if isinstance(value, Property)}

    @classmethod
    def summary(cls) -> str:
        """The first paragraph of the docstring as one line."""
        return " ".join((cls.__doc__ or "").strip().split("\n\n")[0].split())

    def require_effect(self, circumstances: str, *names: str) -> None:
        """Refuses properties that would do nothing in the circumstances, such as "without a file".

        Raises:
            ValueError: one of them has another value than by default.
        """
        for name in names:
            if getattr(self, name) != self.properties()[name].default:
                raise ValueError(f"the property {name} is set, but has no effect {circumstances}")

    def open(self, session: Session) -> None:
        """Called once, before any data, in the order of the chain. May replace `session.header`."""
        self.session = session

    def take(self, item: ItemT) -> Iterator[object]:
        """Yields what follows from one item; each yielded item travels on before the next is asked for."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it does with an item")

    def finish(self) -> Iterator[object]:
        """Yields what is still held when the stream ends."""
        return iter(())


# The parts that gadgets need and add. The stream itself starts with ACQUISITIONS.
ACQUISITIONS = "acquisitions"
WHITENED = "whitened data"
TRAJECTORY = "trajectory"
FRAMES = "frames"
COIL_MAPS = "coil maps"
IMAGE = "image"
