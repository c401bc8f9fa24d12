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


def stored_at(state_folder: Path, kind: str, measurement_id: str) -> Path:
    """Where a measurement's result of a kind, `NOISE` or `FIELD_MAP`, is kept.

    The id comes from the network: what is readable of it stays readable, the hash keeps ids apart.
    """
    readable = re.sub(r"[^A-Za-z0-9_-]", "_", measurement_id)[:60]
    return state_folder / kind / f"{readable}-{sha256(measurement_id.encode()).hexdigest()[:16]}.npz"


def dependencies(header: Header, types: Collection[str]) -> list[str]:
    """The measurementIDs on which a measurement depends by one of these types, given in lower case."""
    information = header.measurementInformation
    named = information.measurementDependency if information else []
    return [d.measurementID for d in named if d.dependencyType.lower() in types]


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
