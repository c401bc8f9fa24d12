"""What field maps do for the spirals at hand: figures, and a picture.

    python benchmarks/field_map_cases.py FOLDER

FOLDER holds spiral_b0_simulated/, spiral_phantom_20ch/ and gre_3echo_phantom/ as the tests find them. All images go
through cg_sense.xml and field_map.xml.

The truth of the simulated spiral lies on a grid half a pixel off the FFT grid, so the field of view is shifted by half
a pixel in the raw data, and the image lies on the truth's own grid. The centre frequency of the real spiral is not that
of its field map: the offset is the one with which the least-squares image leaves the smallest residual in the samples.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import ismrmrd
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

from gadgets.coil_compression import CoilCompression
from gadgets.coil_maps import CoilMaps
from gadgets.field_map import FieldMap
from gadgets.frame import Frame
from gadgets.frame_assembly import FrameAssembly
from gadgets.gadget import Gadget, Session
from gadgets.imaging_model import model_of
from gadgets.noise_prewhitening import NoisePrewhitening
from gadgets.remove_oversampling import RemoveOversampling
from gadgets.trajectory import Trajectory
from pipelines.chain import Chain
from pipelines.header import read_header
from pipelines.replay import Replay, replay_here
from pipelines.session import Site
from pipelines.streams.file import RawFile
from recon_core.disc_edge import disc_edge
from recon_core.metrics import nrmse
from recon_core.solvers.cg_sense import cg_sense

PICTURE = Path(__file__).parent / "pictures" / "field_map_cases.png"
OFFSETS_HZ = range(0, 701, 50)
ALIAS_HZ = 200.0  # 1 / (echo 2 - echo 1)
DISC, NOTCH_DEG = ((95.5, 95.5), 47.0), (250, 300)


def reconstruct(raw_path: Path, pipeline: str = "cg_sense", **settings: str) -> dict[str, torch.Tensor]:
    """Images `[y, x]` by the last word of their series description."""
    images: dict[str, torch.Tensor] = {}

    def keep(image) -> None:  # noqa: ANN001
        images.setdefault(image.meta["SeriesDescription"].split("_")[-1], torch.from_numpy(image.data[0, 0].copy()))

    job = Replay(raw=raw_path, pipeline=pipeline, parameters={"ImageExport.data_type": "complex64", **settings})
    with RawFile(raw_path) as raw, tempfile.TemporaryDirectory() as state:
        site = Site(device="cpu", state_folder=Path(state))
        replay_here(job, raw, site, keep, lambda text: None, lambda items, total: items)
    return images


def stored(path: Path, name: str) -> torch.Tensor:
    """An array of a case; its first axis is x, ours is y."""
    return torch.from_numpy(np.load(path)[name]).transpose(-1, -2)


def shifted(source: Path, folder: Path) -> Path:
    """A copy of a raw data file whose field of view lies half a pixel further in both axes."""
    target = folder / source.name
    with closing(ismrmrd.Dataset(source, "dataset", False)) as old, closing(ismrmrd.Dataset(target, "dataset")) as new:
        xml = old.read_xml_header()
        new.write_xml_header(xml)
        matrix = ismrmrd.xsd.CreateFromDocument(xml).encoding[0].encodedSpace.matrixSize
        for number in range(old.number_of_acquisitions()):
            line = old.read_acquisition(number)
            line.data[:] *= np.exp(1j * np.pi * (line.traj[:, 0] / matrix.x + line.traj[:, 1] / matrix.y))
            new.append_acquisition(line)
    return target


def simulated_spiral(folder: Path, work: Path) -> dict[str, torch.Tensor]:
    """Prints errors against the truth; gives the pictures."""
    clean, field = (shifted(folder / f"spiralout_{name}_slc90.h5", work) for name in ("clean", "Susc70Mhz"))
    truth = stored(folder / "truth_slc90.npz", "image")
    np.savez(work / "head.npz", stored(folder / "truth_slc90.npz", "b0_hz_Susc70Mhz").numpy())
    with_map = {"FieldMap.file": str(work / "head.npz"), "FieldMap.field_sign": "+"}
    images = {
        "simulated head: truth": truth,
        "without a field": reconstruct(clean)["image"].abs(),
        "with a field, no map": reconstruct(field)["image"].abs(),
        "with a field and its map": reconstruct(field, **with_map)["image"].abs(),
    }
    for name, image in list(images.items())[1:]:
        print(f"simulated spiral, {name:25s} NRMSE {nrmse(image, truth):.4f}")
    return images


def real_spiral(folder: Path, work: Path) -> dict[str, torch.Tensor]:
    """Prints the search for the offset and the edges of the disc; gives the pictures."""
    raw, measured = folder / "acr_shimoff_20ch.h5", folder / "acr_shimoff_20ch_b0map.npz"
    np.savez(
        work / "disc.npz",
        field_map_hz=stored(measured, "b0_hz").numpy(),
        mask=stored(measured, "mask").numpy(),
    )
    common = {"CoilMaps.calibration": "48", "CgSense.iterations": "30"}
    with_map = {**common, "FieldMap.file": str(work / "disc.npz"), "FieldMap.field_sign": "+"}
    frame, session = frame_of(raw, CoilMaps(calibration=48), FieldMap(file=work / "disc.npz", field_sign="+"))
    residuals = {offset: residual(frame, session, offset) for offset in OFFSETS_HZ}
    for offset, value in residuals.items():
        print(f"real spiral, map + {offset:3d} Hz: residual of the samples {value:.4f}")
    best = min(residuals, key=lambda offset: residuals[offset])
    images = {
        "real disc: no map": reconstruct(raw, **common)["image"].abs(),
        "map as it is": reconstruct(raw, **with_map)["image"].abs(),
        f"map + {best} Hz": reconstruct(raw, **with_map, **{"FieldMap.offset": str(best)})["image"].abs(),
    }
    for name, image in images.items():
        edge = disc_edge(image, *DISC, NOTCH_DEG)
        print(
            f"{name:18s} radius {edge.radius:.2f} px, out of round {edge.out_of_round:.2f} px, "
            f"edge falls by {edge.sharpness:.0%} per pixel"
        )
    return {name: image[30:162, 30:162] for name, image in images.items()}


def residual(frame: Frame, session: Session, offset_hz: float) -> float:
    """|A x - y| / |y| of the least-squares image x with the field map and an offset."""
    model = model_of(replace(frame, field_map=frame.field_map + offset_hz), session, off_resonance_error=1e-3)
    image = cg_sense(model, frame.samples.kspace, 0.0, 30).image
    return float((model.forward(image) - frame.samples.kspace).norm() / frame.samples.kspace.norm())


def frame_of(raw_path: Path, *last: Gadget[Frame]) -> tuple[Frame, Session]:
    """The only frame of a file, and its session."""
    first = [NoisePrewhitening(), Trajectory(), RemoveOversampling(), FrameAssembly(), CoilCompression()]
    with RawFile(raw_path) as raw:
        session = Session(header=read_header(raw.header_xml))
        (frame,) = Chain([*first, *last], session, outputs=(Frame,)).run(raw.items())
    return frame, session


def echoes(folder: Path) -> dict[str, torch.Tensor]:
    """Prints how far the map is from the stored one; gives the pictures."""
    raw, measured = folder / "02_GRE_3echoes.h5", folder / "02_GRE_3echoes_b0map.npz"
    truth, mask = -stored(measured, "b0_hz"), stored(measured, "mask")
    found = {}
    for name, settings in {
        "echoes 1 and 2, raw": {"FieldMap.echoes": "2", "FieldMap.smoothing": "0"},
        "all echoes, smoothed": {},
    }.items():
        found[name] = reconstruct(raw, "field_map", **settings, **{"CgSense.iterations": "1"})["field map"].real
        difference = (found[name] - truth)[mask]
        alias = difference.abs() > ALIAS_HZ / 2
        same, raw_rms = (float(x.square().mean().sqrt()) for x in (difference[~alias], difference))
        print(
            f"three echoes, {name:20s}: RMS difference {raw_rms:.2f} Hz; {int(alias.sum())} of {len(alias)} pixels lie "
            f"on another multiple of {ALIAS_HZ:g} Hz; the others {same:.2f} Hz, median "
            f"{difference.abs().median():.3f} Hz"
        )
    shown = {name: torch.where(mask, field, torch.nan) for name, field in {"stored map": truth, **found}.items()}
    return {f"{name} (Hz)": field for name, field in shown.items()}


def draw(rows: list[dict[str, torch.Tensor]]) -> None:
    """A row for each case, magnitudes in grey and fields in colour."""
    figure, axes = plt.subplots(len(rows), 4, figsize=(12, 3.2 * len(rows)), squeeze=False)
    for row, images in zip(axes, rows, strict=True):
        for axis, (name, image) in zip(row, images.items(), strict=False):
            if "Hz)" in name:
                figure.colorbar(axis.imshow(image.numpy(), cmap="RdBu_r", vmin=-200, vmax=200), ax=axis, shrink=0.7)
            else:
                axis.imshow(image.numpy(), cmap="gray", vmin=0, vmax=float(image.quantile(0.998)))
            axis.set_title(name, fontsize=9)
        for axis in row:
            axis.axis("off")
    figure.tight_layout()
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=100)


def main() -> None:
    """Prints the figures and draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as work:
        rows = [
            simulated_spiral(folder / "spiral_b0_simulated", Path(work)),
            real_spiral(folder / "spiral_phantom_20ch", Path(work)),
            echoes(folder / "gre_3echo_phantom"),
        ]
    draw(rows)


if __name__ == "__main__":
    main()
