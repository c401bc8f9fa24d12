"""Declared gadget properties: one declaration gives the type, unit, range, default and meaning.

The XML reader, the XSD, the command line, the wire and the help text all read these declarations, so that
nothing about a property is written twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")

AUTO = "auto"
_TRUE = {"true", "1", "yes", "on"}
_FALSE = {"false", "0", "no", "off"}


class PropertyError(ValueError):
    """A property value that cannot be used: says what was expected and what came."""


class Property(Generic[T]):
    """A typed attribute of a gadget, set from text.

    Declare one with `real`, `integer`, `flag`, `choice`, `text`, `path` or `known_or_path`. A property whose default is
    None also takes the word "auto", and its meaning says what is then done.
    """

    def __init__(
        self,
        kind: str,
        default: T,
        meaning: str,
        read: Callable[[str], T],
        unit: str = "",
        low: float | None = None,
        high: float | None = None,
        choices: Sequence[str] = (),
    ) -> None:
        self.kind = kind
        self.default = default
        self.meaning = meaning
        self.unit = unit
        self.low = low
        self.high = high
        self.choices = tuple(choices)
        self._read = read
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Property[T]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: object | None, owner: type) -> Any:
        return self if instance is None else instance.__dict__.get(self.name, self.default)

    def parse(self, text: str) -> T:
        """The value that `text` stands for.

        Raises:
            PropertyError: `text` has another type or lies outside the range.
        """
        word = text.strip()
        if self.default is None and word == AUTO:
            return self.default
        try:
            value = self._read(word)
        except ValueError:
            raise self._refusal(text) from None
        if self._outside(value):
            raise self._refusal(text)
        return value

    @property
    def expected(self) -> str:
        """What a value must look like, in words: "a number from 0 to 1"."""
        words = {
            "real": "a number",
            "integer": "a whole number",
            "flag": "true or false",
            "choice": "one of " + ", ".join(self.choices),
            "text": "text",
            "path": ", ".join([*self.choices, "or a path"]) if self.choices else "a path",
        }[self.kind]
        if self.low is not None and self.high is not None:
            words += f" from {self.low:g} to {self.high:g}"
        elif self.low is not None:
            words += f" of at least {self.low:g}"
        elif self.high is not None:
            words += f" of at most {self.high:g}"
        if self.unit:
            words += f" in {self.unit}"
        return words + (f', or "{AUTO}"' if self.default is None else "")

    def is_of_this_machine(self, text: str) -> bool:
        """Whether `text` is a path, which only this machine's own user may set."""
        return self.kind == "path" and text.strip() not in self.choices

    @property
    def default_text(self) -> str:
        """The default as it would be written in a pipeline file."""
        if self.default is None:
            return AUTO
        if isinstance(self.default, bool):
            return str(self.default).lower()
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default)

    def _outside(self, value: object) -> bool:
        if not isinstance(value, (int, float)):
            return False
        return (self.low is not None and value < self.low) or (self.high is not None and value > self.high)

    def _refusal(self, text: str) -> PropertyError:
        return PropertyError(f"expected {self.expected}, got {text!r}")


def _read_real(word: str) -> float:
    value = float(word)
    if not math.isfinite(value):
        raise ValueError(word)
    return value


def _read_flag(word: str) -> bool:
    if word.lower() in _TRUE:
        return True
    if word.lower() in _FALSE:
        return False
    raise ValueError(word)


@overload
def real(
    default: float, meaning: str, unit: str = ..., low: float | None = ..., high: float | None = ...
) -> Property[float]: ...
@overload
def real(
    default: None, meaning: str, unit: str = ..., low: float | None = ..., high: float | None = ...
) -> Property[float | None]: ...
def real(
    default: float | None, meaning: str, unit: str = "", low: float | None = None, high: float | None = None
) -> Any:
    """A finite real number."""
    return Property("real", default, meaning, _read_real, unit, low, high)


@overload
def integer(
    default: int, meaning: str, unit: str = ..., low: int | None = ..., high: int | None = ...
) -> Property[int]: ...
@overload
def integer(
    default: None, meaning: str, unit: str = ..., low: int | None = ..., high: int | None = ...
) -> Property[int | None]: ...
def integer(default: int | None, meaning: str, unit: str = "", low: int | None = None, high: int | None = None) -> Any:
    """A whole number."""
    return Property("integer", default, meaning, int, unit, low, high)


def flag(default: bool, meaning: str) -> Property[bool]:
    """True or false."""
    return Property("flag", default, meaning, _read_flag)


def choice(default: str, choices: Sequence[str], meaning: str) -> Property[str]:
    """One word out of a fixed list, in capitals or not."""
    by_lower = {known.lower(): known for known in choices}

    def read(word: str) -> str:
        if word.lower() not in by_lower:
            raise ValueError(word)
        return by_lower[word.lower()]

    return Property("choice", default, meaning, read, choices=choices)


def text(default: str, meaning: str) -> Property[str]:
    """Free text."""
    return Property("text", default, meaning, str)


def _of_home(word: str) -> Path:
    """A path that may begin with ~ or ~user."""
    try:
        return Path(word).expanduser()
    except RuntimeError as error:  # there is no such user
        raise ValueError(word) from error


def path(default: None, meaning: str) -> Property[Path | None]:
    """A file of this machine. Refused in anything that arrives over the network."""

    def read(word: str) -> Path | None:
        if not word:
            raise ValueError(word)
        return _of_home(word)

    return Property("path", default, meaning, read)


def known_or_path(default: str, known: Sequence[str], meaning: str) -> Property[str]:
    """One of the names that come with the program, or what names a file of this machine, as FILE or KIND:FILE.

    The network may set names.
    """

    def read(word: str) -> str:
        kind, colon, file = word.rpartition(":")
        if not file:
            raise ValueError(word)
        # Otherwise as it was written: Path would make a name that comes with the program of ./name.
        return f"{kind}{colon}{_of_home(file)}" if file.startswith("~") else word

    return Property("path", default, meaning, read, choices=known)
