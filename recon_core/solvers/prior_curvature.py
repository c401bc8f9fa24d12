"""How a prior bends about noisy images, seen through its denoiser."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from recon_core.priors.prior import Prior

_SECANT = 0.3
"""Length of the difference by which a Jacobian is found, root mean square, relative to the noise level.

Shorter ones drown in the rounding of networks in bfloat16 (3e-4 of the unit image, a thirtieth of this at the level
0.03), over longer ones the denoiser bends.
"""

_LEAST = 0.1
"""Part of a change that is always left: a network's Jacobian is only nearly that of a density, and may have more."""


def not_followed(prior: Prior, noisy: Tensor, denoised: Tensor, level: float) -> Callable[[Tensor], Tensor]:
    """What the denoised image does not follow of a change v of the image: v - J v, with its Jacobian J.

    By Tweedie's formula the gradient of `-log p` of noisy images is `(x - D(x)) / level^2`, and its curvature
    `(1 - J) / level^2`: small along changes that lead from one likely image to another, which the denoised image
    follows, and `1 / level^2` only across them.

    Args:
        prior: D.
        noisy: about which it is looked at, complex `[y, x]`.
        denoised: D of it.
        level: noise level.

    Returns:
        From v, complex `[y, x]`, to at least a tenth of v.
    """

    def of(change: Tensor) -> Tensor:
        size = change.abs().square().mean().sqrt()
        if not size > 0:
            return change
        step = _SECANT * level / size
        followed = (prior.denoise(noisy + step * change, level) - denoised) / step
        rest = change - followed
        # Conjugate gradients need a positive curvature along what they ask for.
        if (change.conj() * rest).real.sum() < 0:
            rest = rest.new_zeros(rest.shape)
        return _LEAST * change + (1 - _LEAST) * rest

    return of
