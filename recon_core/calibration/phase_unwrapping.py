"""Phase without jumps of 2 pi, region by region."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, connected_components, minimum_spanning_tree
from torch import Tensor

Numbers = NDArray[np.int64]
Reals = NDArray[np.float64]

REACH = 3
"""Pixels this far apart along an axis are neighbours: thin gaps, as of bone, are crossed where nothing else leads."""


def unwrapped(phase: Tensor, magnitude: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Adds whole turns, from pixel to pixel along the most trustworthy neighbours.

    Growing a region always over its best edge gives the spanning tree of best edges (Prim), which is found directly
    here. An edge is as good as its phase step is small and its magnitudes are alike, as in ROMEO (Dymerska et al., Magn
    Reson Med 85:2294, 2021).

    Args:
        phase: `[*shape]` in radians, of any number of axes.
        magnitude: `[*shape]`.
        mask: bool `[*shape]`, the pixels with signal.

    Returns:
        The phase, zero outside the mask, and the connected regions of the mask, int64 `[*shape]`, numbered from 1 and 0
        outside. Between regions, whole turns are left open: each has the turn of its brightest pixel.
    """
    wrapped, bright, inside = (x.detach().cpu().numpy() for x in (phase.double(), magnitude.double(), mask))
    values, strength = wrapped[inside], bright[inside]
    count = len(values)
    first, second, distances = _edges(inside)
    costs = _costs(values, strength, first, second, distances)
    graph = csr_matrix((costs, (first, second)), shape=(count, count))
    regions, labels = connected_components(graph, directed=False)
    turns = _turns_along(_rooted(graph, _brightest(labels, strength, regions)), values)
    result, numbers = np.zeros_like(wrapped), np.zeros(wrapped.shape, np.int64)
    result[inside] = values + 2 * math.pi * turns
    numbers[inside] = labels + 1
    return torch.from_numpy(result).to(phase), torch.from_numpy(numbers).to(phase.device)


def _edges(inside: NDArray[np.bool_]) -> tuple[Numbers, Numbers, Numbers]:
    """Pairs of neighbours along the axes, as indices into the pixels of the mask, and how far they are apart."""
    index = np.full(inside.shape, -1)
    index[inside] = np.arange(inside.sum())
    parts = []
    for axis, distance in itertools.product(range(inside.ndim), range(1, REACH + 1)):
        along = np.moveaxis(index, axis, 0)
        both = np.stack([along[:-distance].ravel(), along[distance:].ravel()])
        both = both[:, (both >= 0).all(axis=0)]
        parts.append((*both, np.full(both.shape[1], distance)))
    first, second, distances = (np.concatenate(part) for part in zip(*parts, strict=True))
    return first, second, distances


def _costs(phase: Reals, magnitude: Reals, first: Numbers, second: Numbers, distances: Numbers) -> Reals:
    """At a distance of d, from d for the best edge to d + 1 for the worst."""
    step = phase[first] - phase[second]
    smooth = 1 - np.abs(step - 2 * math.pi * np.rint(step / (2 * math.pi))) / math.pi
    low, high = np.minimum(magnitude[first], magnitude[second]), np.maximum(magnitude[first], magnitude[second])
    alike = np.divide(low, high, out=np.zeros_like(low), where=high > 0)
    return np.asarray(distances + 1 - smooth * alike**2)


def _brightest(labels: Numbers, magnitude: Reals, regions: int) -> Numbers:
    """The index of the brightest pixel of each region."""
    found = np.zeros(regions, np.int64)
    order = np.argsort(magnitude)
    found[labels[order]] = order  # the last one assigned stays
    return found


def _rooted(graph: csr_matrix, starts: Numbers) -> Numbers:
    """The predecessor of each pixel in the tree of the best edges, whose root, a pixel more, leads to all `starts`."""
    count = graph.shape[0]
    tree = minimum_spanning_tree(graph).tocoo()
    first = np.concatenate([tree.row, np.full(len(starts), count)])
    second = np.concatenate([tree.col, starts])
    rooted = csr_matrix((np.ones(len(first)), (first, second)), shape=(count + 1, count + 1))
    before: Numbers = breadth_first_order(rooted, count, directed=False)[1].astype(np.int64)
    before[count] = count
    return before


def _turns_along(before: Numbers, phase: Reals) -> Numbers:
    """Sums the turns of all steps from the root to each pixel, doubling the length of the steps in each round."""
    root = len(phase)
    step = np.append(phase, 0.0)[before[:root]] - phase
    turns = np.append(np.where(before[:root] == root, 0, np.rint(step / (2 * math.pi))), 0).astype(np.int64)
    while (before != root).any():
        turns, before = turns + turns[before], before[before]
    return turns[:root]
