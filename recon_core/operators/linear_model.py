"""The imaging equation: coils, off-resonance and sampling in one linear model."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from recon_core.operators.encoding import Encoding
from recon_core.operators.memory import Batches, plan_batches


class LinearModel:
    """A: from an image to the samples of all coils.

    `(A x)_c(k, t) = sum_r S_c(r) x(r) exp(-2 pi i psi(r) t) exp(-2 pi i k r)` up to the scale of the orthonormal
    Fourier transform, with `exp(-2 pi i psi t) = sum_l w_l(t) c_l(psi)`: A = E S C, where C x = (c_l x)_l carries the
    field, S the coils, and E the trajectory. (Pruessmann et al., Magn Reson Med 46:638, 2001; Sutton et al., IEEE
    Trans Med Imaging 22:178, 2003; blind RED-diff, eq. 15.)

    Iterations never visit the samples: `data_images` sees them once, `residual_images` give the gradients for the image
    and for the field map with one application of Toeplitz kernels.
    """

    def __init__(self, encoding: Encoding, coil_maps: Tensor, field_hz: Tensor | None = None) -> None:
        """Takes leading axes, of slices perhaps, that broadcast with those of images.

        Args:
            encoding: E.
            coil_maps: S, complex `[..., coil, *shape]`.
            field_hz: psi, real `[..., *shape]` in Hz; None where the encoding has no functions of time.

        Raises:
            ValueError: shapes that do not fit; a field that leaves the range of the encoding; a field without
                functions of time, or these without a field.
        """
        self._shape = tuple(encoding.sampling.shape)
        self._term_axis = -1 - len(self._shape)
        _require_shape("coil maps", coil_maps, self._shape, leading=1)
        self.encoding = encoding
        self.coil_maps = coil_maps
        self.field_hz = field_hz
        self._coefficients: Tensor | None = None
        self._batches: dict[int, Batches] = {}
        if (field_hz is None) != (encoding.functions is None):
            raise ValueError("a field map and an encoding with functions of time need each other, only one was given")
        if field_hz is not None:
            _require_shape("a field map", field_hz, self._shape, leading=0)
            assert encoding.functions is not None
            self._coefficients = encoding.functions.coefficients(field_hz).movedim(-1, self._term_axis)

    def with_field(self, field_hz: Tensor) -> LinearModel:
        """The same with another field map."""
        return LinearModel(self.encoding, self.coil_maps, field_hz)

    def forward(self, image: Tensor) -> Tensor:
        """From `[..., *shape]` to `[..., coil, shot, sample]`. Visits the samples."""
        terms = self.expand(image).unsqueeze(self._term_axis)
        maps = self.coil_maps.unsqueeze(self._term_axis - 1)
        some = torch.split(maps, self._coils_sampled_at_once(image.shape[: self._term_axis + 1]), self._term_axis)
        return torch.cat([self.encoding.forward(terms * s) for s in some], -3)

    def adjoint(self, kspace: Tensor) -> Tensor:
        """From `[..., coil, shot, sample]` to `[..., *shape]`. Visits the samples."""
        return self.combine(self.data_images(kspace))

    def normal(self, image: Tensor) -> Tensor:
        """`adjoint(forward(image))` of `[..., *shape]`."""
        return self.combine(self.gram(self.expand(image)))

    def data_images(self, kspace: Tensor) -> Tensor:
        """S^H E^H y: from `[..., coil, shot, sample]` to `[..., term, *shape]`.

        All that later steps need of the data. Does not depend on the field map.

        Raises:
            ValueError: the samples are not those of the model.
        """
        expected = self.coil_maps.shape[self._term_axis], *self.encoding.sampling.trajectory.shape[1:]
        if kspace.shape[-3:] != torch.Size(expected):
            raise ValueError(f"expected samples [..., coil, shot, sample] {list(expected)}, got {list(kspace.shape)}")
        coils = self._coils_sampled_at_once(kspace.shape[:-3])
        maps = torch.split(self.coil_maps.conj(), coils, self._term_axis)
        some = list(zip(torch.split(kspace, coils, -3), maps, strict=True))

        def of_term(term: int) -> Tensor:
            parts = [(self.encoding.adjoint(y, term) * s).sum(self._term_axis) for y, s in some]
            return torch.stack(parts).sum(0)

        return torch.stack([of_term(term) for term in range(self.encoding.terms)], self._term_axis)

    def residual_images(self, image: Tensor, data_images: Tensor) -> Tensor:
        """S^H E^H (A x - y), from x `[..., *shape]` and y as `data_images`: `[..., term, *shape]`."""
        self._require_terms(data_images)
        return self.gram(self.expand(image)) - data_images

    def image_gradient(self, residual_images: Tensor) -> Tensor:
        """2 A^H (A x - y), the gradient of |A x - y|^2 as d / dRe x + i d / dIm x: `[..., *shape]`."""
        return 2 * self.combine(residual_images)

    def field_gradient(self, image: Tensor, residual_images: Tensor) -> Tensor:
        """The gradient of |A x - y|^2 with respect to psi, per Hz: real `[..., *shape]`.

        Raises:
            ValueError: the model has no field map, or shapes that do not fit.
        """
        self._require_terms(residual_images)
        return 2 * (self.slope(image).conj() * residual_images).sum(self._term_axis).real

    def expand(self, image: Tensor) -> Tensor:
        """C x: from `[..., *shape]` to `[..., term, *shape]`.

        Raises:
            ValueError: the image has another shape.
        """
        _require_shape("an image", image, self._shape, leading=0)
        terms = image.unsqueeze(self._term_axis)
        return terms if self._coefficients is None else terms * self._coefficients

    def combine(self, terms: Tensor) -> Tensor:
        """C^H u: from `[..., term, *shape]` to `[..., *shape]`.

        Raises:
            ValueError: there are other terms, or images of another shape.
        """
        self._require_terms(terms)
        weighted = terms if self._coefficients is None else terms * self._coefficients.conj()
        return weighted.sum(self._term_axis)

    def slope(self, image: Tensor) -> Tensor:
        """(dC / dpsi) x, what a change of the field by 1 Hz adds to C x: from `[..., *shape]` to `[..., term, *shape]`.

        Raises:
            ValueError: the model has no field map.
        """
        if self.field_hz is None or self.encoding.functions is None:
            raise ValueError("a model without a field map has no derivative with respect to one")
        _require_shape("an image", image, self._shape, leading=0)
        slopes = self.encoding.functions.derivatives(self.field_hz)
        return slopes.movedim(-1, self._term_axis) * image.unsqueeze(self._term_axis)

    def gram(self, terms: Tensor) -> Tensor:
        """S^H E^H E S u of `[..., term, *shape]`, by Toeplitz kernels. Knows no field map.

        Raises:
            ValueError: there are other terms, or images of another shape.
            MemoryError: a single coil of a single image does not fit.
        """
        self._require_terms(terms)
        images = math.prod(np.broadcast_shapes(terms.shape[: self._term_axis], self._lead))
        return self.encoding.kernels.coil_sum(terms, self.coil_maps, self.batches(images))

    def batches(self, images: int | None = None) -> Batches:
        """How many images and coils are computed at once; decided at the first call with each number of images.

        Args:
            images: as many as there are maps or fields, by default.

        Raises:
            MemoryError: a single coil of a single image does not fit.
        """
        images = images or math.prod(self._lead)
        if images not in self._batches:
            coils = self.coil_maps.shape[self._term_axis]
            self._batches[images] = self.encoding.kernels.batches(images, coils, self.coil_maps.dtype)
        return self._batches[images]

    def norm(self, generator: torch.Generator, iterations: int = 20) -> float:
        """The largest eigenvalue of A^H A, from below, by power iteration.

        Args:
            generator: of the random start, on the device of the maps.
            iterations: each one normal operation; 20 leave about a percent.
        """
        image = torch.randn(
            *self._lead, *self._shape, generator=generator, dtype=self.coil_maps.dtype, device=self.coil_maps.device
        )
        norm = 0.0
        for _ in range(iterations):
            image = self.normal(image / torch.linalg.vector_norm(image))
            norm = float(torch.linalg.vector_norm(image))
            if norm == 0:
                break
        return norm

    def _require_terms(self, terms: Tensor) -> None:
        expected = self.encoding.terms, *self._shape
        if terms.shape[self._term_axis :] != torch.Size(expected):
            raise ValueError(f"expected [..., term, *shape] {list(expected)}, got {list(terms.shape)}")

    def _coils_sampled_at_once(self, lead: tuple[int, ...]) -> int:
        """How many coils of images with these leading axes; transforms of the samples double each axis."""
        images = math.prod(np.broadcast_shapes(lead, self._lead))
        each = images * 2 ** len(self._shape) * math.prod(self._shape) * self.coil_maps.itemsize
        return plan_batches(1, self.coil_maps.shape[self._term_axis], each, self.coil_maps.device).coils

    @property
    def _lead(self) -> tuple[int, ...]:
        """The leading axes that maps and field have."""
        fields = () if self.field_hz is None else self.field_hz.shape[: self._term_axis + 1]
        return np.broadcast_shapes(self.coil_maps.shape[: self._term_axis], fields)


def _require_shape(name: str, x: Tensor, shape: tuple[int, ...], leading: int) -> None:
    """That the last axes of `x` are `shape`, with at least so many before them."""
    if x.shape[-len(shape) :] != torch.Size(shape) or x.ndim < len(shape) + leading:
        expected = ", ".join(["...", *["coil"] * leading, *map(str, shape)])
        raise ValueError(f"expected {name} [{expected}] like the sampling operator, got {list(x.shape)}")
