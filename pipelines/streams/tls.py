"""TLS, ended at the border: what is behind it sees a plain socket.

Two threads read and write one `Connection`, which an SSL object does not allow, and ask it to peek, which it cannot. So
one end of a socket pair stands for the peer, and a thread moves bytes between the other end and the encrypted socket.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import select
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from pipelines.errors import FileError, WireError
from pipelines.wire import ERROR, Close, Connection, Text

log = logging.getLogger("spinstream")

HANDSHAKE_SECONDS = 10.0
LINGER_SECONDS = 10.0
BLOCK = 256 << 10
RECORD = 16 << 10  # TLS hands out no more at once

NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE"})
REASONS = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the client showed no certificate, which this server asks for",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the server asks for a client certificate, and none was given",
    "TLSV1_ALERT_UNKNOWN_CA": "the peer does not trust our certificate: it does not know who signed it",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the peer does not accept our certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the peer does not accept our certificate: it has expired",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "the peer refuses: no client certificate was given, or no cipher is shared",
    "TLSV1_ALERT_PROTOCOL_VERSION": "the peer speaks no version of TLS that is taken here (1.2 and later)",
    "UNSUPPORTED_PROTOCOL": "the peer speaks no version of TLS that is taken here (1.2 and later)",
    "NO_SHARED_CIPHER": "the peer and we share no cipher",
}


def server_context(cert: Path, key: Path, clients_ca: Path | None = None) -> ssl.SSLContext:
    """How a server speaks TLS.

    Args:
        cert: PEM, the server's certificate and those between it and its authority.
        key: PEM, without a password.
        clients_ca: PEM, who signs the certificates that each client must show; None asks for none.

    Raises:
        FileError: a file cannot be used; names it.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0  # a client that closes without having read them would reset the connection
    _load_identity(context, cert, key)
    if clients_ca is not None:
        _load_authority(context, clients_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(ca: Path, cert: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """How a client speaks TLS; the server's certificate must name the host that was asked for.

    Args:
        ca: PEM, who signs the server's certificate.
        cert: PEM, the client's own certificate, for servers that ask for one.
        key: PEM, without a password; goes with `cert`.

    Raises:
        FileError: a file cannot be used; names it.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    _load_authority(context, ca)
    if cert is not None and key is not None:
        _load_identity(context, cert, key)
    return context


def wrapped(
    sock: socket.socket, context: ssl.SSLContext, host: str | None = None, seconds: float = HANDSHAKE_SECONDS
) -> socket.socket:
    """A plain socket that stands for an encrypted one.

    The end of what the peer sends is the end of what can be read; a connection that broke raises `ConnectionError` with
    the reason, after all that came before it. Closing waits until what was sent is on its way.

    Args:
        sock: connected; belongs to the result from now on, and is closed when this fails.
        context: of a server or of a client.
        host: which the server's certificate must name; a client's context needs it, a server's takes none.
        seconds: limit of the handshake.

    Raises:
        WireError: no handshake; says why.
    """
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_side=host is None, server_hostname=host)
    try:
        _shake_hands(sock, tls, incoming, outgoing, seconds)
    except BaseException:
        sock.close()
        raise
    if tls.server_side and (shown := tls.getpeercert()):
        log.info("the client shows the certificate of %s", _subject(shown))
    ours, theirs = socket.socketpair()
    net = socket.socket(fileno=sock.detach())  # nobody else shall close it under the thread
    tunnel = _Tunnel(net, theirs, tls, incoming, outgoing)
    tunnel.start()
    return _TunnelEnd(ours, tunnel)


class _TunnelEnd(socket.socket):
    def __init__(self, plain: socket.socket, tunnel: _Tunnel) -> None:
        super().__init__(fileno=plain.detach())
        self._tunnel = tunnel

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        try:
            data = super().recv(size, flags)
        except ConnectionError as error:
            self._tunnel.raise_failure(error)
            raise
        if not data and size:
            self._tunnel.raise_failure()
        return data

    def recv_into(self, buffer: bytearray | memoryview, size: int = 0, flags: int = 0) -> int:  # type: ignore[override]
        try:
            count = super().recv_into(buffer, size, flags)
        except ConnectionError as error:
            self._tunnel.raise_failure(error)
            raise
        if not count and len(buffer):
            self._tunnel.raise_failure()
        return count

    def close(self) -> None:
        super().close()
        if self.fileno() < 0:  # a file made of it may still be open
            self._tunnel.join(LINGER_SECONDS)


class _Tunnel(threading.Thread):
    """Moves bytes both ways, at most a block each, until both directions have ended.

    Args:
        net: carries what is encrypted.
        plain: the far end of the socket pair.
    """

    def __init__(
        self,
        net: socket.socket,
        plain: socket.socket,
        tls: ssl.SSLObject,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
    ) -> None:
        super().__init__(name="tls", daemon=True)
        self._net, self._plain, self._tls = net, plain, tls
        self._incoming, self._outgoing = incoming, outgoing
        self._block = memoryview(bytearray(BLOCK))
        self._decrypted, self._encrypted = bytearray(), bytearray(outgoing.read())
        self._peer_ended = self._we_ended = False  # no more is to be read from it
        self._receiving = self._sending = True  # the direction is still open
        self._left = False  # nobody holds our end any more
        self._failure: str | None = None
        net.setblocking(False)
        plain.setblocking(False)

    def raise_failure(self, cause: Exception | None = None) -> None:
        """Raises why the connection broke, if it did."""
        if self._failure is not None:
            raise ConnectionResetError(errno.ECONNRESET, self._failure) from cause

    def run(self) -> None:
        with self._net, self._plain:
            self._decrypt()  # what came together with the end of the handshake
            while self._receiving or self._sending:
                if not self._wait():
                    return
                self._read_net()
                self._write_plain()
                self._read_plain()
                self._write_net()

    def _wait(self) -> bool:
        """Waits until something can move; false once the peer takes nothing more and nobody would miss it."""
        poll = select.poll()
        net = select.POLLIN * self._wants_net() | select.POLLOUT * bool(self._encrypted)
        plain = select.POLLIN * self._wants_plain() | select.POLLOUT * bool(self._decrypted)
        if net or not self._receiving:  # with no wish left, a lost peer still shows
            poll.register(self._net, net)
        if plain or not self._left:
            poll.register(self._plain, plain)
        events = dict(poll.poll(LINGER_SECONDS * 1000 if self._left else None))
        if events.get(self._plain.fileno(), 0) & select.POLLHUP:
            self._left = True
            self._stop_receiving()
        if not self._receiving and events.get(self._net.fileno(), 0) & (select.POLLHUP | select.POLLERR):
            self._stop_sending()
        return bool(events)

    def _wants_net(self) -> bool:
        # A peer that has its keys changed all the time has to take our answers too.
        answers = len(self._encrypted) < 2 * BLOCK
        return self._receiving and not self._peer_ended and not self._decrypted and answers

    def _wants_plain(self) -> bool:
        return self._sending and not self._we_ended and not self._encrypted

    def _read_net(self) -> None:
        if not self._wants_net():
            return
        try:
            count = self._net.recv_into(self._block)
        except BlockingIOError:
            return
        except OSError as error:
            self._break(error.strerror or str(error))
            return
        if count:
            self._incoming.write(self._block[:count])
        else:
            self._incoming.write_eof()
        self._decrypt()

    def _decrypt(self) -> None:
        try:
            while data := self._tls.read(RECORD):
                self._decrypted += data
            self._peer_ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._peer_ended = True
        except ssl.SSLError as error:
            self._break(_reason(error, self._tls))
        if self._sending:
            self._encrypted += self._outgoing.read()  # TLS answers some of what it reads

    def _write_plain(self) -> None:
        if self._decrypted:
            try:
                del self._decrypted[: self._plain.send(self._decrypted)]
            except BlockingIOError:
                return
            except OSError:
                self._stop_receiving()
        if self._receiving and self._peer_ended and not self._decrypted:
            self._stop_receiving()

    def _read_plain(self) -> None:
        if not self._wants_plain():
            return
        try:
            data = self._block[: self._plain.recv_into(self._block)]
        except BlockingIOError:
            return
        except OSError:
            data = self._block[:0]
        if not data:
            self._we_ended = True
            with contextlib.suppress(ssl.SSLError):  # waits for the peer's own end, which comes when it likes
                self._tls.unwrap()
        while data:
            data = data[self._tls.write(data) :]
        self._encrypted += self._outgoing.read()

    def _write_net(self) -> None:
        if self._encrypted:
            try:
                del self._encrypted[: self._net.send(self._encrypted)]
            except BlockingIOError:
                return
            except OSError:  # reading goes on: the peer may have said why
                self._stop_sending()
        if self._we_ended and not self._encrypted:
            self._sending = False

    def _break(self, reason: str) -> None:
        self._failure = reason
        self._peer_ended = True
        self._stop_sending()

    def _stop_receiving(self) -> None:
        self._receiving = False
        self._decrypted.clear()
        with contextlib.suppress(OSError):
            self._plain.shutdown(socket.SHUT_WR)

    def _stop_sending(self) -> None:
        self._sending = False
        self._encrypted.clear()
        with contextlib.suppress(OSError):
            self._plain.shutdown(socket.SHUT_RD)


def _context(protocol: ssl._SSLMethod) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context


def _load_identity(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    _require_readable(cert)
    _require_readable(key)

    def refuse() -> NoReturn:
        raise FileError(f"{key}: the key has a password, which nobody is there to type; give one without")

    try:
        context.load_cert_chain(cert, key, password=refuse)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise FileError(f"{key}: this key does not belong to the certificate {cert}") from None
        raise FileError(f"{cert} and {key}: expected a certificate and its key as PEM: {error}") from error


def _load_authority(context: ssl.SSLContext, ca: Path) -> None:
    _require_readable(ca)
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError as error:
        raise FileError(f"{ca}: expected certificates as PEM: {error}") from error


def _require_readable(file: Path) -> None:
    try:
        file.read_bytes()
    except OSError as error:
        raise FileError(f"{file}: cannot be read: {error.strerror or error}") from error


def _shake_hands(
    sock: socket.socket, tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, seconds: float
) -> None:
    deadline = time.monotonic() + seconds
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            sock.settimeout(max(deadline - time.monotonic(), 1e-3))
            try:
                tls.do_handshake()
                sock.sendall(outgoing.read())
                return
            except ssl.SSLWantReadError:
                sock.sendall(outgoing.read())
            if data := sock.recv(BLOCK):
                incoming.write(data)
            else:
                incoming.write_eof()
    except TimeoutError:
        raise WireError(f"no TLS handshake: it was not complete after {seconds:g} s") from None
    except ssl.SSLError as error:
        _tell_why(sock, tls, error, outgoing)
        raise WireError(f"no TLS handshake: {_reason(error, tls)}") from error
    except OSError as error:
        raise WireError(f"no TLS handshake: {error.strerror or error}") from error


def _tell_why(sock: socket.socket, tls: ssl.SSLObject, error: ssl.SSLError, outgoing: ssl.MemoryBIO) -> None:
    """The peer hears it as a TLS alert, or in plain where it speaks plain."""
    with contextlib.suppress(OSError, WireError), Connection(sock, LINGER_SECONDS) as connection:
        if tls.server_side and error.reason in NOT_TLS:
            connection.send(Text(f"{ERROR}this server speaks TLS only\n"))
            connection.send(Close())
        else:
            sock.sendall(outgoing.read())
        connection.drain(1.0)


def _subject(certificate: Mapping[str, Any]) -> str:
    """Whose certificate it is, such as "organizationName=Example, commonName=scanner 1"."""
    return ", ".join(f"{name}={value}" for part in certificate.get("subject", ()) for name, value in part)


def _reason(error: ssl.SSLError, tls: ssl.SSLObject) -> str:
    peer = "client" if tls.server_side else "server"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the {peer}'s certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLEOFError):
        return "the peer ended the connection without a word"
    if error.reason in NOT_TLS:
        return f"what the {peer} sends is not TLS"
    return REASONS.get(error.reason, f"TLS: {error.reason or error}")
