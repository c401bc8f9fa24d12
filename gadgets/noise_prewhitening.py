"""Makes the noise of all receiver channels independent and equally strong."""

from __future__ import annotations

import math
from collections.abc import Iterator

import ismrmrd
import numpy as np
import torch
from numpy.typing import NDArray

from gadgets.gadget import ACQUISITIONS, WHITENED, Gadget, Session
from gadgets.mrd import not_imaging
from gadgets.noise_covariance import NoiseCovariance
from gadgets.property import path
from gadgets.stored import NOISE, dependencies, find_stored, stored_at
from recon_core.calibration.noise import whitening_matrix

DEFAULT_BANDWIDTH_RATIO = 0.793
"""Noise bandwidth of a receiver over its nominal bandwidth where the header does not say; Gadgetron's default."""

DEAD = 1e-12
"""Noise variance, relative to the strongest channel, below which a channel is dead."""

DEPENDENT = 1e-9
"""Smallest eigenvalue of the noise correlation matrix at which the channels still count as independent."""


class NoisePrewhitening(Gadget[ismrmrd.Acquisition]):
    """Decorrelates the receiver channels with noise scans, to unit noise variance per real channel.

    The covariance is the sum of n n^H over all N samples of the noise scans, divided by N - 1; no mean is removed. Data
    are multiplied by its inverse Cholesky factor times sqrt(2 T_acq / T_noise * bandwidth ratio), where T are the
    sampling times and the ratio is the header's relativeReceiverNoiseBandwidth: the scaling of Gadgetron. (Kellman,
    McVeigh: Image reconstruction in SNR units. Magn Reson Med 54:1439, 2005.)

    Taken in this order: noise scans of the stream, the covariance that an earlier session stored for the noise
    measurement on which the header says this one depends, the file of the property `covariance`. A covariance that is
    measured is stored under the measurementID of the header. Without any, data pass as they are, and later gadgets know
    that their noise is not (`Session.noise_known`).
    """

    takes = ismrmrd.Acquisition
    needs = frozenset({ACQUISITIONS})
    adds = frozenset({WHITENED})

    covariance = path(
        None,
        "An .npz file with the noise covariance [coil, coil] as `covariance` and the sampling time of its noise in "
        "microseconds as `dwell_us`; used when neither the stream nor an earlier noise measurement gives one",
    )

    def open(self, session: Session) -> None:
        """Reads from the header what the noise depends on."""
        super().open(session)
        system = session.header.acquisitionSystemInformation
        ratio = system.relativeReceiverNoiseBandwidth if system else None
        self._bandwidth_ratio = DEFAULT_BANDWIDTH_RATIO if ratio is None else float(ratio)
        self._labels = tuple(str(label.coilName) for label in system.coilLabel) if system else ()
        self._scans = NoiseScans()
        self._imaging = False
        self._late = False
        self._whitening: NDArray[np.complex64] | None = None

    def take(self, item: ismrmrd.Acquisition) -> Iterator[object]:
        """Keeps noise scans, whitens imaging and calibration lines, lets other lines pass."""
        kind = not_imaging(item)
        if item.isFlagSet(ismrmrd.ACQ_IS_NOISE_MEASUREMENT):
            self._measure(item)
        elif kind is not None:
            yield item
        else:
            if not self._imaging:
                self._imaging = True
                self._whitening = self._prepare(item)
            yield item if self._whitening is None else whitened(item, self._whitening)

    def finish(self) -> Iterator[object]:
        """Stores the covariance of a measurement that was nothing but noise scans."""
        if self._scans.samples and not self._imaging:
            self._store(self._scans.covariance(self._labels))
        return iter(())

    def _measure(self, scan: ismrmrd.Acquisition) -> None:
        if not self._imaging:
            self._scans.add(scan)
        elif not self._late:
            # Lines that already left were scaled without it, and one image must not mix two scales.
            self.session.tell("Noise scans that came after the first imaging line are not used.")
            self._late = True

    def _prepare(self, first: ismrmrd.Acquisition) -> NDArray[np.complex64] | None:
        """The whitening matrix for all lines, from the best noise data there are."""
        found = self._find()
        if found is None:
            self.session.noise_known = False
            self._note("no noise data: the channels are not prewhitened")
            return None
        source, noise = found
        noise = noise.in_order(self._labels)
        if len(noise.matrix) != first.active_channels:
            raise ValueError(f"the data have {first.active_channels} channels, but {source} {len(noise.matrix)}")
        factor = scale(first.sample_time_us, noise.dwell_us, self._bandwidth_ratio)
        self._note(
            f"noise from {source}, scaled by {factor:.4g} (dwell {first.sample_time_us:g} us, in the noise "
            f"{noise.dwell_us:g} us, bandwidth ratio {self._bandwidth_ratio:g})"
        )
        return (factor * self._inverse_factor(noise.matrix)).astype(np.complex64)

    def _find(self) -> tuple[str, NoiseCovariance] | None:
        if self._scans.samples:
            noise = self._scans.covariance(self._labels)
            self._store(noise)
            return f"{self._scans.count} noise scan(s) of the stream", noise
        for measurement in dependencies(self.session.header, {"noise"}):
            stored = find_stored(self.session.state_folder, NOISE, measurement)
            if stored is not None:
                return f"noise measurement {measurement}", NoiseCovariance.load(stored)
            self.session.tell(f"The noise measurement {measurement}, on which this one depends, is not stored here.")
        if self.covariance is not None:
            return f"the file {self.covariance.name}", NoiseCovariance.load(self.covariance)
        return None

    def _store(self, noise: NoiseCovariance) -> None:
        information = self.session.header.measurementInformation
        if not information or not information.measurementID:
            return
        try:
            noise.save(stored_at(self.session.state_folder, NOISE, information.measurementID))
        except OSError as error:
            self.session.tell(f"The noise covariance could not be stored for later measurements: {error}")

    def _inverse_factor(self, covariance: NDArray[np.complex128]) -> NDArray[np.complex128]:
        """Inverse Cholesky factor; rows and columns of dead channels are zero, so that they carry no weight."""
        variance = covariance.diagonal().real
        alive = np.flatnonzero(variance > DEAD * variance.max())
        if not len(alive):
            raise ValueError("the noise scans hold nothing but zeros")
        if len(alive) < len(variance):
            dead = sorted(set(range(len(variance))) - set(alive.tolist()))
            self._note(f"channels without any noise are dead and set to zero: {', '.join(map(str, dead))}")
        block = np.ix_(alive, alive)
        deviation = np.sqrt(variance[alive])
        if np.linalg.eigvalsh(covariance[block] / np.outer(deviation, deviation))[0] < DEPENDENT:
            raise ValueError("the noise of some channels is a mixture of that of others: is one of them there twice?")
        full = np.zeros_like(covariance)
        full[block] = whitening_matrix(torch.from_numpy(covariance[block])).numpy()
        return full

    def _note(self, what: str) -> None:
        self.session.tell(f"NoisePrewhitening: {what}.")
        self.session.history.append(f"NoisePrewhitening: {what}")


class NoiseScans:
    """Sums over the samples of noise scans, which are not kept themselves."""

    def __init__(self) -> None:
        self.count = 0
        self.samples = 0
        self.dwell_us = 0.0
        self._sum = np.zeros((0, 0), dtype=np.complex128)

    def add(self, scan: ismrmrd.Acquisition) -> None:
        """Takes one more noise scan.

        Raises:
            ValueError: it has another number of channels or another sampling time than those before it, or samples
                that are not finite.
        """
        data = np.asarray(scan.data, dtype=np.complex128)
        if not np.isfinite(data).all():
            raise ValueError("the noise scan holds samples that are not finite")
        if not self.count:
            self._sum, self.dwell_us = np.zeros((len(data), len(data)), np.complex128), float(scan.sample_time_us)
        if len(data) != len(self._sum) or scan.sample_time_us != self.dwell_us:
            raise ValueError(
                f"the noise scan has {len(data)} channels and a dwell of {scan.sample_time_us:g} us, those before it "
                f"{len(self._sum)} and {self.dwell_us:g} us"
            )
        self._sum += data @ data.conj().T
        self.count += 1
        self.samples += data.shape[1]

    def covariance(self, labels: tuple[str, ...]) -> NoiseCovariance:
        """The covariance so far.

        Raises:
            ValueError: there are fewer samples than channels, so that the covariance cannot be inverted.
        """
        if self.samples <= len(self._sum):
            raise ValueError(f"the noise scans have {self.samples} samples, too few for {len(self._sum)} channels")
        fitting = labels if len(labels) == len(self._sum) else ()
        return NoiseCovariance(self._sum / (self.samples - 1), self.dwell_us, fitting)


def scale(dwell_us: float, noise_dwell_us: float, bandwidth_ratio: float) -> float:
    """Gadgetron's factor from noise samples to imaging samples; 1 when one of the sampling times is not known."""
    if not dwell_us or not noise_dwell_us:
        return 1.0
    return math.sqrt(2 * dwell_us / noise_dwell_us * bandwidth_ratio)


def whitened(acquisition: ismrmrd.Acquisition, whitening: NDArray[np.complex64]) -> ismrmrd.Acquisition:
    """A copy of an acquisition with its channels mixed by `whitening` `[coil, coil]`.

    Raises:
        ValueError: it has another number of channels.
    """
    if acquisition.active_channels != len(whitening):
        raise ValueError(f"expected {len(whitening)} channels as in the noise, got {acquisition.active_channels}")
    return ismrmrd.Acquisition(acquisition.getHead(), whitening @ acquisition.data, acquisition.traj)
