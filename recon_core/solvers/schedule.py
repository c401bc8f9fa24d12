"""Noise levels for solvers to go through."""

from __future__ import annotations

from recon_core.priors.prior import Prior


def falling_levels(prior: Prior, highest: float, lowest: float, count: int) -> list[float]:
    """Levels from the highest to the lowest, each the same fraction of the one before, as far as the prior knows them.

    Raises:
        ValueError: there is no level, or they do not fall.
    """
    highest, lowest = min(highest, prior.convention.highest), max(lowest, prior.convention.lowest)
    if count < 1 or not lowest < highest:
        raise ValueError(
            f"expected noise levels that fall, got {count} from {highest:g} to {lowest:g} ({prior.name} knows "
            f"{prior.convention.lowest:g} to {prior.convention.highest:g})"
        )
    return [highest * (lowest / highest) ** (i / max(count - 1, 1)) for i in range(count)]
