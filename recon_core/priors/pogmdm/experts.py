"""One-dimensional Gaussian mixtures on the responses of filters, and their fast evaluation by tables."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

COMPONENTS = 125
# Standard deviation of the components of clean responses: the distance of their means.
SPREAD = 1 / (COMPONENTS - 1)
# Added to the weights before their logarithm is taken, so that a weight of zero has a finite gradient.
_FLOOR = 1e-14


def means(like: Tensor) -> Tensor:
    """The centres of the components, `[125]`, equally spaced."""
    return torch.linspace(-0.5, 0.5, COMPONENTS, dtype=like.dtype, device=like.device)


def all_weights(half: Tensor) -> Tensor:
    """Weights `[..., 125]` of symmetric mixtures from their half `[..., 63]`, centre first."""
    return torch.cat([half[..., 1:].flip(-1), half], dim=-1)


def student_weights() -> Tensor:
    """Where the weights start, `[63]`: a density with heavy tails, of sum one with its mirror image."""
    position = torch.linspace(0, 0.5, COMPONENTS // 2 + 1, dtype=torch.float64)
    half = 1 / (1 + (position / 0.01) ** 2)
    return half / all_weights(half).sum()


def mixture_mean(response: Tensor, weights: Tensor, variance: Tensor) -> Tensor:
    """Mean of the component that a response came from, by the exact sum.

    The derivative of the potential is `(response - mixture_mean) / variance`.

    Args:
        response: of a filter, any shape.
        weights: of the components, `[..., 125]`, broadcast against the responses.
        variance: of the components, broadcast against the responses.
    """
    return _exponents(response, weights, variance).softmax(-1) @ means(response)


def potential(response: Tensor, weights: Tensor, variance: Tensor) -> Tensor:
    """Negative logarithm of the density of responses; arguments as for `mixture_mean`."""
    return 0.5 * torch.log(2 * math.pi * variance) - _exponents(response, weights, variance).logsumexp(-1)


def _exponents(response: Tensor, weights: Tensor, variance: Tensor) -> Tensor:
    distance = response[..., None] - means(response)
    return torch.log(weights + _FLOOR) - distance**2 / (2 * variance[..., None])


@dataclass(frozen=True)
class Tables:
    """`mixture_mean / variance` at equidistant responses, interpolated linearly: for many levels and many filters.

    Args:
        weights: of the components, `[filters, 125]`, symmetric.
        variance: of the components, `[levels, filters]`.
        values: `[levels, filters, nodes]`.
        reach: the response at the last node, `[levels, filters]`; the first node is at its negative.
    """

    weights: Tensor
    variance: Tensor
    values: Tensor
    reach: Tensor

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(tensor.nbytes for tensor in vars(self).values())

    @staticmethod
    def build(weights: Tensor, variance: Tensor, nodes: int) -> Tables:
        """Tables that reach six standard deviations of a component beyond the outermost mean.

        Gradients flow back to both arguments.

        Args:
            weights: of the components, `[filters, 125]`, symmetric.
            variance: of the components, `[levels, filters]`.
            nodes: of each table, odd.
        """
        reach = 0.5 + 6 * variance.detach().sqrt()
        steps = torch.linspace(0, 1, nodes // 2 + 1, dtype=variance.dtype, device=variance.device)
        half = mixture_mean(reach[..., None] * steps, weights[:, None], variance[..., None]) / variance[..., None]
        return Tables(weights, variance, torch.cat([-half[..., 1:].flip(-1), half], dim=-1), reach)

    def of(self, filters: slice) -> Tables:
        """Those of some filters."""
        return Tables(self.weights[filters], *(t[:, filters] for t in (self.variance, self.values, self.reach)))

    def exact(self, response: Tensor, level: Tensor) -> Tensor:
        """What `look_up` finds, by the sum over all components at every response."""
        variance = self.variance[level, None, :, None, None]
        return mixture_mean(response, self.weights[:, None, None], variance) / variance

    def look_up(self, response: Tensor, level: Tensor) -> Tensor:
        """`mixture_mean / variance` of responses; what lies beyond the tables is summed exactly.

        Args:
            response: `[n, channels, filters, y, x]`.
            level: of each image, as an index, `[n]`.
        """
        nodes = self.values.shape[-1]
        place = response * (nodes // 2 / self.reach)[level, None, :, None, None] + nodes // 2
        # Of 32 bits, and into one dimension: several times faster than `take`.
        index = place.detach().int().clamp_(0, nodes - 2)
        fraction = place - index
        first = nodes * torch.arange(self.reach.numel(), dtype=torch.int32, device=index.device).view_as(self.reach)
        index += first[level, None, :, None, None]
        values, index = self.values.flatten(), index.flatten()
        below, above = (nodal.index_select(0, index).view_as(place) for nodal in (values, values[1:]))
        found = torch.lerp(below, above, fraction)
        least, greatest = fraction.detach().aminmax()
        if least >= 0 and greatest <= 1:
            return found
        return self._beyond(found, (fraction < 0) | (fraction > 1), response, level)

    def _beyond(self, found: Tensor, outside: Tensor, response: Tensor, level: Tensor) -> Tensor:
        places = outside.nonzero(as_tuple=True)
        weights, variance = self.weights[places[2]], self.variance[level[places[0]], places[2]]
        return found.index_put(places, mixture_mean(response[places], weights, variance) / variance)
