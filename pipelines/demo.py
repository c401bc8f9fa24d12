"""The demo: a simulated spiral head scan in a field that nobody measured, streamed through the embedded server.

    python -m pipelines.demo FOLDER

Leaves in FOLDER: raw.h5 (the scan and its truth), blurred.h5 and sharpened.h5 (what came back without regard to the
field, and with the field found from the same spiral), contact_sheet.png, summary.txt.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import click
import h5py
import ismrmrd
import matplotlib
import numpy as np
import numpy.typing as npt
import torch
from matplotlib import pyplot

from gadgets.image_export import SERIES
from pipelines.errors import SpinstreamError
from pipelines.simulate import SimulationSettings, simulate
from recon_core.metrics import nrmse

BLURRED, SHARPENED = "cg_sense", "blind_joint"
SCAN = SimulationSettings(
    trajectory="spiral", matrix=(128, 128), coils=8, shots=16, acceleration=2, readout_ms=15.6, dwell_us=4.0, b0="100",
    noise=0.02, slices=1, seed=3,
)  # fmt: skip
SETTINGS = ("BlindSolver.samples=2",)

Picture = npt.NDArray[np.float64]
Pictures = dict[str, Picture]


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def main(folder: Path) -> None:
    """Simulates, serves, streams and shows."""
    try:
        run(folder)
    except SpinstreamError as error:
        raise click.ClickException(str(error)) from error


def run(folder: Path) -> None:
    """The demo, with its files in `folder`.

    Raises:
        SpinstreamError: a step failed; says which, and why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    raw = folder / "raw.h5"
    began = time.perf_counter()
    click.echo("simulating a spiral head scan: 8 coils, R = 2, noise scan, field inhomogeneity ...")
    raw.unlink(missing_ok=True)
    simulate(raw, SCAN)
    simulated = time.perf_counter() - began
    blurred, sharpened = folder / "blurred.h5", folder / "sharpened.h5"
    with _server() as address:
        click.echo(f"streaming it to the server at {address}, which does not know of the field ...")
        _replay(raw, address, BLURRED, blurred)
        click.echo("streaming it again, to be sharpened: image, field map and coil maps from the same spiral ...")
        began = time.perf_counter()
        notes = _replay(raw, address, SHARPENED, sharpened, *SETTINGS)
        streamed = time.perf_counter() - began
    pictures = _pictures(raw, blurred, sharpened)
    _contact_sheet(pictures, folder / "contact_sheet.png")
    summary = _summary(simulated, streamed, notes, pictures)
    (folder / "summary.txt").write_text(summary)
    click.echo(f"\n{summary}\nlook at {folder / 'contact_sheet.png'}")


@contextmanager
def _server() -> Iterator[str]:
    """A `spinstream serve` process on a free port; yields HOST:PORT."""
    command = [sys.executable, "-m", "pipelines.cli", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line.startswith("listening on "):
                raise SpinstreamError(f"the server did not start: {line or 'it ended without a word'}")
            yield line.split()[-1]
        finally:
            process.terminate()


def _replay(raw: Path, address: str, pipeline: str, images: Path, *settings: str) -> list[str]:
    """Streams with the command that a user would type; returns what the server told."""
    command = [sys.executable, "-m", "pipelines.cli", "replay", str(raw), "--to", address, "--pipeline", pipeline]
    chosen = [word for setting in settings for word in ("--set", setting)]
    done = subprocess.run(
        [*command, "-o", str(images), "--overwrite", *chosen], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SpinstreamError(f"the replay failed: {done.stderr.strip()}")
    told = (line.removeprefix("note: ") for line in done.stderr.splitlines() if line.startswith("note: "))
    return [note for note in told if not note.endswith(" steps")]


def _pictures(raw: Path, blurred: Path, sharpened: Path) -> Pictures:
    """Magnitudes and fields `[y, x]`; fields zero outside the head."""
    with h5py.File(raw) as file:
        truth, field, mask = (file[f"truth/{name}"][0] for name in ("image", "field_map_hz", "mask"))
    return {
        "truth": np.abs(truth).astype(float),
        "blurred": _image(blurred, "image"),
        "sharpened": _image(sharpened, "image"),
        "true field": np.where(mask, field, 0.0),
        "estimated field": np.where(mask, _image(sharpened, "field_map"), 0.0),
        "mask": mask.astype(float),
    }


def _image(path: Path, kind: str) -> Picture:
    with closing(ismrmrd.Dataset(str(path), "dataset", False)) as dataset:
        image = dataset.read_image(f"image_{SERIES[kind].index}", 0)
    return np.asarray(image.data[0, 0], dtype=float)


def _contact_sheet(pictures: Pictures, path: Path) -> None:
    matplotlib.use("agg")
    figure, axes = pyplot.subplots(2, 3, figsize=(10.5, 7), squeeze=False)
    shown = {
        "blurred": f"without the field ({BLURRED})",
        "sharpened": f"with the field found ({SHARPENED})",
        "truth": "truth",
        "error": "error of the estimated field, Hz",
        "estimated field": "estimated field, Hz",
        "true field": "true field, Hz",
    }
    pictures = {**pictures, "error": pictures["estimated field"] - pictures["true field"]}
    largest = float(np.abs(pictures["true field"]).max())
    for axis, (kind, title) in zip(axes.flat, shown.items(), strict=True):
        picture = pictures[kind]
        if kind in ("truth", "blurred", "sharpened"):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=np.percentile(picture, 99.8))
        else:
            figure.colorbar(axis.imshow(picture, cmap="RdBu_r", vmin=-largest, vmax=largest), ax=axis, shrink=0.8)
        axis.set_title(title)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _summary(simulated: float, streamed: float, notes: list[str], pictures: Pictures) -> str:
    truth = torch.as_tensor(pictures["truth"])
    errors = {kind: nrmse(torch.as_tensor(pictures[kind]), truth) for kind in ("blurred", "sharpened")}
    inside = pictures["mask"] > 0
    off = np.sqrt(np.mean((pictures["estimated field"] - pictures["true field"])[inside] ** 2))
    whole = np.sqrt(np.mean(pictures["true field"][inside] ** 2))
    lines = [
        f"a {SCAN.trajectory} scan of {SCAN.matrix[0]} x {SCAN.matrix[1]}, {SCAN.coils} coils, {SCAN.shots} shots / "
        f"{SCAN.acceleration}, {SCAN.readout_ms:g} ms readouts, field up to {SCAN.b0} Hz, noise {SCAN.noise:.0%}",
        f"simulated in {simulated:.1f} s; streamed, reconstructed blindly and received in {streamed:.1f} s",
        *(f"magnitude NRMSE of the {kind} image: {error:.3f}" for kind, error in errors.items()),
        f"field: {whole:.1f} Hz root mean square, estimated to within {off:.1f} Hz",
        *notes,
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
