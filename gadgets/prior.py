"""Priors of sessions: read once for each device of a site, and shared from then on."""

from __future__ import annotations

import hashlib
from pathlib import Path

from gadgets.gadget import Session
from recon_core.cache import content_key
from recon_core.priors.library import load_prior, shipped_priors
from recon_core.priors.prior import Prior


def prior_of(name: str, session: Session) -> Prior:
    """The prior that a name means (see `load_prior`) on the session's device; a file that changed is read again.

    Raises:
        ValueError: there is no such prior, or the file cannot be read or does not hold one.
    """
    file = shipped_priors().get(name) or Path(name.partition(":")[2] or name)
    changed = file.stat().st_mtime_ns if file.is_file() else None
    key = content_key("prior", name, changed, str(session.device))
    try:
        return session.cache.get(key, lambda: load_prior(name, session.device))
    except OSError as error:
        raise ValueError(f"cannot read the prior {file}: {error.strerror or error}") from error


def provenance_of(name: str) -> str:
    """What the history says of a prior: its name, or of a file the last part of its path, and its digest."""
    if name in shipped_priors():
        return name
    kind, colon, path = name.rpartition(":")
    file = Path(path)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return f"{kind}{colon}{file.name} (sha256 {digest[:12]})"
