"""What one measurement leaves in the state folder for those that depend on it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from gadgets.gadget import Header

NOISE, FIELD_MAP = "noise", "field_map"

PSEUDONYM = re.compile(r"[0-9a-f]{16}")


def pseudonym(measurement_id: str) -> str:
    """What stands for a measurementID in file names, logs and histories: scanners put the patient's ID into it.

    A pseudonym stands for itself.
    """
    if PSEUDONYM.fullmatch(measurement_id):
        return measurement_id
    return sha256(measurement_id.encode()).hexdigest()[:16]


def stored_at(state_folder: Path, kind: str, measurement_id: str) -> Path:
    """Where a measurement's result of a kind, `NOISE` or `FIELD_MAP`, is kept. The id comes from the network."""
    return state_folder / kind / f"{pseudonym(measurement_id)}.npz"


def find_stored(state_folder: Path, kind: str, measurement_id: str) -> Path | None:
    """The same, or None where nothing is kept; a file that an earlier version named by the id loses that name."""
    path = stored_at(state_folder, kind, measurement_id)
    if path.exists():
        return path
    former = next(path.parent.glob(f"*-{path.name}"), None)
    try:
        return former and former.replace(path)
    except OSError:  # in a folder that cannot be written to
        return former


def dependencies(header: Header, types: Collection[str]) -> list[str]:
    """The pseudonyms of what a measurement depends on by one of these types, given in lower case."""
    information = header.measurementInformation
    named = information.measurementDependency if information else []
    return [pseudonym(d.measurementID) for d in named if d.dependencyType.lower() in types]


def save_arrays(path: Path, **arrays: ArrayLike) -> None:
    """Writes an .npz file, which another session sees whole or not at all.

    Raises:
        OSError: it cannot be written; nothing is left of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as file:
        written = Path(file.name)
    try:
        np.savez(written, **arrays)  # type: ignore[arg-type]  # the stubs take them for savez's own flag
        written.replace(path)
    finally:
        written.unlink(missing_ok=True)
