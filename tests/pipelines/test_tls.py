"""TLS against OpenSSL as Python wraps it, and whole sessions through it."""

import contextlib
import functools
import logging
import re
import socket
import ssl
import struct
import threading
import time

import pytest
import trustme
from click.testing import CliRunner
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from pipelines.commands.replay import replay
from pipelines.errors import FileError, PeerVanished, RemoteError, WireError
from pipelines.streams.client import stream
from pipelines.streams.limits import Limits
from pipelines.streams.server import Server
from pipelines.streams.tls import client_context, server_context, wrapped
from pipelines.wire import Close, ConfigFile, ConfigText, Connection, Text

from mrd_items import HEADER_XML, acquisition, configuration

MEBIBYTE = 1 << 20


class Files:
    """Certificates on disk: a server's, a client's, and one of a stranger."""

    def __init__(self, folder):
        authority, stranger = trustme.CA(), trustme.CA()
        self.ca, self.strange_ca = folder / "ca.pem", folder / "strange_ca.pem"
        authority.cert_pem.write_to_path(self.ca)
        stranger.cert_pem.write_to_path(self.strange_ca)
        self.server = self._identity(folder, "server", authority.issue_cert("127.0.0.1"))
        self.client = self._identity(
            folder, "client", authority.issue_cert("scanner@example.org", common_name="scanner 1")
        )
        self.strange = self._identity(folder, "strange", stranger.issue_cert("127.0.0.1"))
        self.elsewhere = self._identity(folder, "elsewhere", authority.issue_cert("elsewhere.example.org"))

    @staticmethod
    def _identity(folder, name, issued):
        cert, key = folder / f"{name}.pem", folder / f"{name}.key"
        issued.cert_chain_pems[0].write_to_path(cert)
        issued.private_key_pem.write_to_path(key)
        return cert, key


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return Files(tmp_path_factory.mktemp("tls"))


def tcp_pair():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return near, far


class InThread(threading.Thread):
    def __init__(self, function):
        super().__init__(daemon=True)
        self._function = function
        self.start()

    def run(self):
        self.result = None
        try:
            self.result = self._function()
        except Exception as error:
            self.result = error

    def outcome(self):
        self.join(20)
        assert not self.is_alive()
        return self.result


@pytest.fixture
def pair(files):
    """A client's and a server's plain socket, with TLS between them; closed at the end."""
    with contextlib.ExitStack() as stack:

        def connect(server=None, client=None):
            near, far = tcp_pair()
            accepting = InThread(lambda: wrapped(far, server or server_context(*files.server)))
            ours = stack.enter_context(wrapped(near, client or client_context(files.ca), "127.0.0.1"))
            theirs = stack.enter_context(accepting.outcome())
            for sock in (ours, theirs):
                sock.settimeout(20)
            return ours, theirs

        yield connect


def read_all(sock):
    digest = bytearray()
    while data := sock.recv(MEBIBYTE):
        digest += data
    return bytes(digest)


def send_all(sock, data):
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def test_bytes_go_both_ways_at_once_and_none_is_lost(pair):
    ours, theirs = pair()
    up, down = (bytes([seed]) * 997 + struct.pack("<I", seed) for seed in (3, 5))
    up, down = up * 50_000, down * 50_000
    threads = [InThread(lambda s=s, d=d: send_all(s, d)) for s, d in ((ours, up), (theirs, down))]
    reading = [InThread(lambda s=s: read_all(s)) for s in (ours, theirs)]
    assert reading[0].outcome() == down
    assert reading[1].outcome() == up
    assert [thread.outcome() for thread in threads] == [None, None]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_after_one_side_has_ended_the_other_still_sends(files, pair, version):
    context = client_context(files.ca)
    context.maximum_version = context.minimum_version = version
    ours, theirs = pair(client=context)
    send_all(ours, b"question")
    assert read_all(theirs) == b"question"
    time.sleep(0.05)
    sending = InThread(lambda: send_all(theirs, b"answer" * MEBIBYTE))
    assert read_all(ours) == b"answer" * MEBIBYTE
    assert sending.outcome() is None


def test_a_full_peer_is_not_sent_more(pair):
    ours, _ = pair()
    ours.settimeout(0.3)
    sent = 0
    with pytest.raises(TimeoutError):
        while sent < 64 * MEBIBYTE:
            sent += ours.send(bytes(MEBIBYTE))
    assert sent < 32 * MEBIBYTE


def test_what_is_encrypted_is_what_openssl_reads(files):
    near, far = tcp_pair()
    accepting = InThread(lambda: wrapped(far, server_context(*files.server)))
    with client_context(files.ca).wrap_socket(near, server_hostname="127.0.0.1", suppress_ragged_eofs=False) as plain:
        with accepting.outcome() as theirs:
            plain.sendall(b"ping")
            assert theirs.recv(100) == b"ping"
            theirs.sendall(b"pong")
            assert plain.recv(100) == b"pong"
        assert plain.recv(100) == b""  # close_notify: an end without one raises


def test_an_end_without_goodbye_is_a_broken_connection_after_all_that_came_before(files):
    near, far = tcp_pair()
    accepting = InThread(lambda: wrapped(far, server_context(*files.server)))
    plain = client_context(files.ca).wrap_socket(near, server_hostname="127.0.0.1")
    with accepting.outcome() as theirs, theirs.makefile("rb") as reading:
        plain.sendall(b"half a mess")
        plain.close()
        assert reading.read(11) == b"half a mess"
        with pytest.raises(ConnectionResetError, match="the peer ended the connection without a word"):
            theirs.recv(100)


def test_a_peer_that_is_killed_breaks_reading_and_sending(files):
    near, far = tcp_pair()
    accepting = InThread(lambda: wrapped(far, server_context(*files.server)))
    plain = client_context(files.ca).wrap_socket(near, server_hostname="127.0.0.1")
    with accepting.outcome() as theirs, Connection(theirs, 10.0) as connection:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        plain.close()
        with pytest.raises(PeerVanished, match="Connection reset by peer"):
            connection.receive()
        with pytest.raises(PeerVanished):
            connection.peer_has_ended()
        with pytest.raises(PeerVanished):
            connection.send(Text("anybody?"))


def test_a_peer_that_has_ended_is_told_from_one_that_is_gone(pair):
    ours, theirs = pair()
    with Connection(theirs, 10.0) as connection:
        assert not connection.peer_has_ended()
        ours.shutdown(socket.SHUT_WR)
        wait_until(connection.peer_has_ended)
        ours.close()

        def gone():
            try:
                connection.send(Text("anybody?"))
                connection.peer_has_ended()
            except PeerVanished:
                return True
            return False

        wait_until(gone)


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_closing_sends_what_is_on_its_way_and_leaves_no_thread(pair):
    ours, theirs = pair()
    before = threading.active_count()
    ours.sendall(b"x" * 100_000)
    ours.close()
    assert threading.active_count() == before - 1
    assert read_all(theirs) == b"x" * 100_000


def test_cutting_wakes_a_blocked_reader(pair):
    ours, _ = pair()
    with Connection(ours) as connection:
        reading = InThread(connection.receive)
        time.sleep(0.05)
        connection.cut()
        assert isinstance(reading.outcome(), PeerVanished)


@pytest.fixture
def shake_hands():
    """Accepts clients with TLS only to hear what becomes of it; gives the address and the failures."""
    with contextlib.ExitStack() as stack:

        def start(context):
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            failures = []

            def accept():
                sock, _ = listener.accept()
                try:
                    wrapped(sock, context).close()
                except WireError as error:
                    failures.append(str(error))

            InThread(accept)
            return listener.getsockname(), failures

        yield start


@pytest.fixture
def serve(site):
    """Starts a server behind TLS; gives its address."""
    with contextlib.ExitStack() as stack:

        def start(context):
            border = functools.partial(wrapped, context=context)
            server = stack.enter_context(Server("127.0.0.1", 0, site, Limits(patience_s=5.0), border=border))
            InThread(functools.partial(server.serve_forever, 0.02))
            stack.callback(server.shutdown)
            return server.server_address[:2]

        yield start


def run(address, tls, items=3, gadget="ToImage"):
    got, notes = [], []
    config = ConfigText(configuration(gadget))
    data = map(acquisition, range(items))
    stream(address, config, HEADER_XML, data, got.append, notes.append, patience_s=10.0, tls=tls)
    return got, notes


def test_a_session_with_certificates_on_both_sides(files, serve, caplog):
    caplog.set_level(logging.INFO, "spinstream")
    at = serve(server_context(*files.server, clients_ca=files.ca))
    tls = client_context(files.ca, *files.client)
    got, notes = run(at, tls)
    assert [item.image_index for item in got] == [1, 2, 3]
    assert notes[-1].startswith("times: ToImage ")
    assert re.search(r"the client shows the certificate of .*\bcommonName=scanner 1$", caplog.text, re.MULTILINE)
    with pytest.raises(RemoteError, match="^Fail failed on acquisition 2 .*: the coil is on fire$"):
        run(at, tls, items=5, gadget="Fail")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_without_the_certificate_that_is_asked_for_hears_so(files, shake_hands, version):
    at, failures = shake_hands(server_context(*files.server, clients_ca=files.ca))
    context = client_context(files.ca)
    context.minimum_version = context.maximum_version = version
    with pytest.raises(WireError, match="client certificate"):
        run(at, context)
    wait_until(lambda: failures)
    assert failures == ["no TLS handshake: the client showed no certificate, which this server asks for"]


def test_a_client_of_a_strange_authority_hears_so(files, shake_hands):
    at, failures = shake_hands(server_context(*files.server, clients_ca=files.ca))
    with pytest.raises(WireError, match="the peer does not trust our certificate"):
        run(at, client_context(files.ca, *files.strange))
    wait_until(lambda: failures)
    assert "the client's certificate is not trusted: unable to get local issuer certificate" in failures[0]


@pytest.mark.parametrize(
    ("identity", "ca", "why"),
    [
        ("server", "strange_ca", "the server's certificate is not trusted: unable to get local issuer certificate"),
        ("elsewhere", "ca", "the server's certificate is not trusted: IP address mismatch.*127.0.0.1"),
    ],
)
def test_a_server_that_is_not_who_it_should_be(files, shake_hands, identity, ca, why):
    at, failures = shake_hands(server_context(*getattr(files, identity)))
    with pytest.raises(WireError, match=rf"127.0.0.1:{at[1]}: no TLS handshake: {why}"):
        run(at, client_context(getattr(files, ca)))
    wait_until(lambda: failures)
    assert "does not" in failures[0]  # trust, or accept, our certificate


def test_a_plain_client_hears_that_the_server_speaks_tls(files, shake_hands):
    at, failures = shake_hands(server_context(*files.server))
    with pytest.raises(WireError, match="this server speaks TLS only"):
        run(at, None)
    wait_until(lambda: failures)
    assert failures == ["no TLS handshake: what the client sends is not TLS"]


def test_a_plain_client_that_sends_a_name_hears_it_too(files, shake_hands):
    at, _ = shake_hands(server_context(*files.server))
    with socket.create_connection(at) as sock, Connection(sock, 5.0) as connection:
        connection.send(ConfigFile("preview"))
        assert connection.receive() == Text("error: this server speaks TLS only\n")
        assert connection.receive() == Close()


def test_a_server_that_speaks_plain(address, files):
    with pytest.raises(WireError, match="no TLS handshake: what the server sends is not TLS"):
        run(address, client_context(files.ca))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tls-ca", "CA"], "--tls-ca is for streaming to a server with --to"),
        (["--to", "127.0.0.1:1", "--tls-cert", "CA", "--tls-key", "CA"], "need --tls-ca"),
        (["--to", "127.0.0.1:1", "--tls-ca", "CA", "--tls-cert", "CA"], "--tls-cert and --tls-key go together"),
    ],
)
def test_options_of_tls_that_do_not_fit_together(files, arguments, message):
    ca = str(files.ca)
    arguments = [ca if argument == "CA" else argument for argument in arguments]
    result = CliRunner().invoke(replay, [ca, "-p", "preview", "-o", "x.h5", *arguments])
    assert result.exit_code == 2
    assert message in result.output


def test_a_silent_peer_does_not_hold_up_the_handshake(files):
    near, far = tcp_pair()
    with near, pytest.raises(WireError, match=r"it was not complete after 0\.1 s"):
        wrapped(far, server_context(*files.server), seconds=0.1)
    assert far.fileno() < 0


def test_files_that_cannot_be_used_are_named(files, tmp_path):
    missing, scrap = tmp_path / "missing.pem", tmp_path / "scrap.pem"
    scrap.write_text("scrap")
    cert, key = files.server
    locked = tmp_path / "locked.key"
    private = load_pem_private_key(key.read_bytes(), None)
    locked.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    for make, text in [
        (lambda: server_context(missing, key), "missing.pem: cannot be read: No such file"),
        (lambda: server_context(cert, missing), "missing.pem: cannot be read: No such file"),
        (lambda: server_context(cert, key, missing), "missing.pem: cannot be read: No such file"),
        (lambda: server_context(scrap, key), "scrap.pem and .*server.key: expected a certificate and its key as PEM"),
        (lambda: server_context(cert, files.client[1]), "client.key: this key does not belong to .*server.pem"),
        (lambda: server_context(cert, locked), "locked.key: the key has a password"),
        (lambda: client_context(scrap), "scrap.pem: expected certificates as PEM"),
    ]:
        with pytest.raises(FileError, match=text):
            make()
