"""What the gadgets that draw images from a diffusion prior have in common: the prior, and how many are drawn."""

from __future__ import annotations

from gadgets.gadget import Session
from gadgets.prior import prior_of, provenance_of
from gadgets.property import Property, integer, known_or_path
from gadgets.solver import Solver
from recon_core.priors.library import shipped_priors


def prior_property(default: str) -> Property[str]:
    """What names a prior."""
    return known_or_path(
        default,
        tuple(shipped_priors()),
        "what images look like: a prior that comes with the program (spinstream priors), a .safetensors file of "
        "spinstream train, or a published checkpoint as ncsnv2:FILE or pogmdm:FILE",
    )


class PriorSolver(Solver):
    """Base of solvers with a prior; each says which one it takes by default."""

    prior: Property[str]
    samples = integer(
        4, "images to draw, of which the mean is taken; of two and more there is a deviation", low=1, high=256
    )

    def open(self, session: Session) -> None:
        """Reads the prior.

        Raises:
            ValueError: there is no such prior, or its file cannot be read.
        """
        super().open(session)
        self._prior = prior_of(self.prior, session)
        self._provenance = provenance_of(self.prior)

    @property
    def _draws(self) -> int:
        return self.samples
