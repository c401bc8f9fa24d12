"""`spinstream serve`."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from importlib.metadata import version
from ipaddress import ip_address
from typing import Any

import click

from pipelines.bounds import MEBIBYTE, Bounds
from pipelines.commands.options import DEVICES, EXISTING_FILE, EXISTING_FOLDER, FOLDER, address
from pipelines.definition import DEFINITIONS
from pipelines.errors import SpinstreamError
from pipelines.logs import configure
from pipelines.monitor import Monitor
from pipelines.recordings import Recordings
from pipelines.session import Site
from pipelines.streams.limits import Limits
from pipelines.streams.server import Server
from pipelines.streams.tls import server_context, wrapped

log = logging.getLogger("spinstream")

GRACE_SECONDS = 5.0
GIBIBYTE = 1 << 30


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=9002, show_default=True, type=click.IntRange(0, 65535), help="0 picks a free one.")
@click.option("--device", type=DEVICES, default="auto", show_default=True, help="Where to compute.")
@click.option("--seed", default=0, show_default=True, help="Of every random draw.")
@click.option("--definitions", type=EXISTING_FOLDER, multiple=True, help="A further folder of pipeline definitions.")
@click.option("--sessions", default=16, show_default=True, type=click.IntRange(1), help="Clients at a time.")
@click.option(
    "--patience", default=600.0, show_default=True, type=click.FloatRange(0.1), help="Seconds a client may be silent."
)
@click.option("--record", type=FOLDER, help="Record here what clients send, before it is processed.")
@click.option("--record-days", type=click.FloatRange(0, min_open=True), help="Remove recordings older than this.")
@click.option("--record-gib", type=click.FloatRange(0, min_open=True), help="Remove the oldest recordings beyond this.")
@click.option("--memory", type=click.FloatRange(0.1), metavar="GIB", help="Of each session's process [no limit].")
@click.option(
    "--buffer-mib", default=256, show_default=True, type=click.IntRange(1), help="Data that wait for gadgets."
)
@click.option(
    "--message-mib", default=1024, show_default=True, type=click.IntRange(1), help="Largest readout or image."
)
@click.option(
    "--frame-gib",
    default=16.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Largest image of all channels on the encoded grid; a reconstruction takes several times as much.",
)
@click.option(
    "--work-limit",
    default=3600.0,
    show_default=True,
    type=click.FloatRange(1.0),
    help="Seconds that a gadget may be at one item; then its session is ended.",
)
@click.option(
    "--turns", type=click.IntRange(1), help="Sessions that compute on frames at once [1 on a GPU, all on the CPU]."
)
@click.option(
    "--drain", default=30.0, show_default=True, type=click.FloatRange(0), help="Seconds that SIGTERM leaves sessions."
)
@click.option("--cluster", metavar="tcp://HOST:PORT", help="Compute frames on this Dask cluster.")
@click.option("--tls-cert", type=EXISTING_FILE, help="Speak TLS, with this certificate (PEM).")
@click.option("--tls-key", type=EXISTING_FILE, help="Its key (PEM, without a password).")
@click.option("--tls-clients", type=EXISTING_FILE, help="Take only clients with certificates signed by these (PEM).")
@click.option("--monitor", metavar="HOST:PORT", help="Show /metrics (Prometheus), /healthz and /readyz there.")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
def serve(**options: Any) -> None:
    """Serve MRD clients (Gadgetron's protocol) until SIGTERM or Ctrl-C; a second one does not wait for sessions."""
    set_up = partial(configure, log.level, options["log_format"])
    set_up()
    host, port = options["host"], options["port"]
    site, limits, recordings, border = _site(options), _limits(options), _recordings(options), _border(options)
    try:
        server = Server(host, port, site, limits, recordings, border, set_up)
    except OSError as error:
        raise SpinstreamError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    monitor = options["monitor"]
    with server, Monitor(*address(monitor, "--monitor"), server.status) if monitor else nullcontext():
        hurry = _stop_on_signals(server)
        _announce(server, options)
        click.echo("listening on {}:{}".format(*server.server_address[:2]))
        server.serve_forever()
        _end(server, options["drain"], hurry)
    log.info("the server has stopped")


def _announce(server: Server, options: dict[str, Any]) -> None:
    host, port = server.server_address[:2]
    tls = "with TLS and certificates of clients" if options["tls_clients"] else "with TLS"
    tls = tls if options["tls_cert"] else "without TLS"
    folder = options["record"]
    recording = "recording nothing" if folder is None else f"recording to {folder}"
    log.info("spinstream %s serves on %s:%d %s, %s", version("spinstream"), host, port, tls, recording)
    if not options["tls_cert"] and not ip_address(str(host)).is_loopback:
        log.warning(
            "--host %s without TLS: whoever reaches port %d from the network may send data, and can read what others "
            "send; --tls-cert, --tls-key and --tls-clients prevent both",
            options["host"],
            port,
        )


def _site(options: dict[str, Any]) -> Site:
    site = Site(
        device=options["device"],
        seed=options["seed"],
        definitions=(DEFINITIONS, *options["definitions"]),
        cluster=options["cluster"],
        sessions=options["sessions"],
    )
    site.torch_device()
    return site


def _limits(options: dict[str, Any]) -> Limits:
    return Limits(
        sessions=options["sessions"],
        patience_s=options["patience"],
        buffer_bytes=options["buffer_mib"] * MEBIBYTE,
        memory_bytes=None if options["memory"] is None else int(options["memory"] * GIBIBYTE),
        work_s=options["work_limit"],
        turns=options["turns"],
        bounds=Bounds(
            data_bytes=options["message_mib"] * MEBIBYTE, coil_image_bytes=int(options["frame_gib"] * GIBIBYTE)
        ),
    )


def _recordings(options: dict[str, Any]) -> Recordings | None:
    folder, days, gib = options["record"], options["record_days"], options["record_gib"]
    if folder is None:
        if days or gib:
            raise click.UsageError("--record-days and --record-gib are for --record")
        return None
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SpinstreamError(f"--record {folder}: cannot be made: {error.strerror or error}") from error
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise SpinstreamError(f"--record {folder}: this user may not read and write there")
    return Recordings(folder, days, None if gib is None else int(gib * GIBIBYTE))


def _border(options: dict[str, Any]) -> Callable[[socket.socket], socket.socket]:
    cert, key, clients = options["tls_cert"], options["tls_key"], options["tls_clients"]
    if cert is None and key is None and clients is None:
        return lambda sock: sock
    if cert is None or key is None:
        raise click.UsageError("TLS takes both --tls-cert and --tls-key")
    context = server_context(cert, key, clients)
    return lambda sock: wrapped(sock, context)


def _stop_on_signals(server: Server) -> threading.Event:
    """Ends `serve_forever` at the first signal; the event is set at the second."""
    hurry = threading.Event()
    stopping = threading.Event()

    def stop(*_: object) -> None:
        if stopping.is_set():
            hurry.set()
        stopping.set()
        threading.Thread(target=server.shutdown).start()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return hurry


def _end(server: Server, drain: float, hurry: threading.Event) -> None:
    log.info("the server is being stopped")
    if server.sessions:
        log.info("%d sessions run still; waiting %g s for them", len(server.sessions), drain)
    if not server.drain(drain, hurry) and not server.dismiss(GRACE_SECONDS):
        log.warning("%d sessions did not end in time", len(server.sessions))
