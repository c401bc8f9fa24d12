"""Headers, acquisitions and sessions for tests of gadgets."""

from __future__ import annotations

import ismrmrd
import numpy as np

from gadgets.gadget import Session


def limits_xml(limits) -> str:
    def limit(name, low, high, centre):
        return f"<{name}><minimum>{low}</minimum><maximum>{high}</maximum><center>{centre}</center></{name}>"

    return "".join(limit(name, *values) for name, values in limits.items())


def encoding_xml(
    matrix=(16, 8, 1), fov=(320, 160, 5), recon=None, recon_fov=None, kind="cartesian", limits=None, more=""
) -> str:
    """An <encoding>; sizes in the order x, y, z; limits as {counter: (minimum, maximum, center)}."""

    def space(size, width):
        parts = [("matrixSize", size), ("fieldOfView_mm", width)]
        return "".join(
            f"<{n}>" + "".join(f"<{a}>{v}</{a}>" for a, v in zip("xyz", p, strict=True)) + f"</{n}>" for n, p in parts
        )

    if limits is None:
        limits = {"kspace_encoding_step_1": (0, matrix[1] - 1, matrix[1] // 2)}
    return (
        f"<encoding><encodedSpace>{space(matrix, fov)}</encodedSpace>"
        f"<reconSpace>{space(recon or matrix, recon_fov or fov)}</reconSpace>"
        f"<encodingLimits>{limits_xml(limits)}</encodingLimits><trajectory>{kind}</trajectory>{more}</encoding>"
    )


def header(*encodings: str, before="", after="", **encoding):
    """An MRD header of some encodings, or of one that is described as for `encoding_xml`."""
    xml = (
        f'<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">{before}<experimentalConditions>'
        "<H1resonanceFrequency_Hz>123000000</H1resonanceFrequency_Hz></experimentalConditions>"
        f"{''.join(encodings) or encoding_xml(**encoding)}{after}</ismrmrdHeader>"
    )
    return ismrmrd.xsd.CreateFromDocument(xml.encode())


def te(*milliseconds) -> str:
    """The end of a header that gives echo times."""
    times = "".join(f"<TE>{value}</TE>" for value in milliseconds)
    return f"<sequenceParameters>{times}</sequenceParameters>"


def line(step=0, data=None, trajectory=None, flags=(), samples=16, channels=2, counters=None, **fields):
    """An acquisition of noise, reproducible by its step, unless its data are given."""
    if data is None:
        rng = np.random.default_rng(step)
        data = rng.standard_normal((channels, samples)) + 1j * rng.standard_normal((channels, samples))
    data = np.asarray(data, dtype=np.complex64)
    if trajectory is not None:
        trajectory = np.asarray(trajectory, dtype=np.float32)
    values = {"center_sample": data.shape[1] // 2, "sample_time_us": 5.0, "scan_counter": step, **fields}
    item = ismrmrd.Acquisition.from_array(data, trajectory, **values)
    item.idx.kspace_encode_step_1 = step
    for name, value in (counters or {}).items():
        setattr(item.idx, name, value)
    for flag in flags:
        item.setFlag(flag)
    return item


class Told(list):
    """What gadgets tell the person at the client."""

    def __call__(self, what: str) -> None:
        self.append(what)

    def about(self, words: str) -> list[str]:
        return [what for what in self if words in what]


def session(head, **values) -> Session:
    """A session that keeps what is told, as `session.tell`."""
    return Session(header=head, tell=Told(), **values)


def run(gadgets, items, opened) -> list:
    """Sends items through gadgets, as a chain does, and gives what comes out."""
    for gadget in gadgets:
        gadget.open(opened)
    results = []

    def push(item, rest):
        while rest and not isinstance(item, rest[0].takes):
            rest = rest[1:]
        if not rest:
            results.append(item)
            return
        for result in rest[0].take(item):
            push(result, rest[1:])

    for item in items:
        push(item, gadgets)
    for number, gadget in enumerate(gadgets):
        for item in gadget.finish():
            push(item, gadgets[number + 1 :])
    return results
