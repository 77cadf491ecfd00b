"""The context for clients, and TLS in whole records over memory, cut at every place."""

import ssl
from pathlib import Path

import pytest

from creduse_core.arguments import check_not_both
from creduse_core.tls import (
    WholeRecords,
    check_client_context,
    client_context,
    detect_partial_records,
    has_unread,
    is_certificate_error,
    length_of_records,
)

TEXT = b"HTTP/1.1 200 OK\r\n"


def context(kind: int) -> ssl.SSLContext:
    """Make one that needs no certificate."""
    made = ssl.SSLContext(kind)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    made.maximum_version = ssl.TLSVersion.TLSv1_2
    made.set_ciphers("AECDH-AES128-SHA:@SECLEVEL=0")
    return made


class Pair:
    """A client that takes whole records alone, and a server of Python's."""

    def __init__(self) -> None:
        ours = context(ssl.PROTOCOL_TLS_CLIENT)
        ours.sslobject_class = WholeRecords
        self.to_client, self.to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.sent = ssl.MemoryBIO()
        """By the server, and not with the client yet."""
        self.client = ours.wrap_bio(self.to_client, self.to_server)
        assert isinstance(self.client, WholeRecords)
        self.server = context(ssl.PROTOCOL_TLS_SERVER).wrap_bio(
            self.to_server, self.sent, server_side=True
        )
        done: set[ssl.SSLObject] = set()
        while len(done) < 2:
            for side in (self.client, self.server):
                try:
                    side.do_handshake()
                    done.add(side)
                except ssl.SSLWantReadError:
                    pass
                # A byte at a time: the whole records among them are what counts.
                while self.sent.pending:
                    self.to_client.write(self.sent.read(1))
                    assert not self.client.has_part or self.sent.pending

    def said(self) -> bytes:
        """Read all that the client can read."""
        try:
            return self.client.read(100)
        except ssl.SSLWantReadError:
            return b""


def record() -> tuple[Pair, bytes]:
    pair = Pair()
    pair.server.write(TEXT)
    return pair, pair.sent.read()


def test_every_part_of_a_record() -> None:
    """Any part of a record is noticed, and can be read once the rest has come."""
    pair, data = record()
    for size in range(len(data) + 1):
        pair, data = record()
        pair.to_client.write(data[:size])
        assert pair.said() == (TEXT if size == len(data) else b"")
        assert pair.client.has_part is (0 < size < len(data))  # type: ignore[attr-defined]  # checked when it was made
        pair.to_client.write(data[size:])
        assert pair.said() == (b"" if size == len(data) else TEXT)
        assert pair.client.has_part is False  # type: ignore[attr-defined]  # as above


def test_part_behind_a_record() -> None:
    """A part that comes with a whole record is noticed before the record is read."""
    pair, data = record()
    pair.server.write(TEXT)
    pair.to_client.write(data + pair.sent.read()[:7])
    assert pair.client.has_part is True  # type: ignore[attr-defined]  # checked when it was made
    assert pair.said() == TEXT
    assert pair.client.write(b"GET") == 3
    assert pair.client.has_part is True  # type: ignore[attr-defined]  # as above


def test_pending() -> None:
    """Whole records are pending, as the bytes of `incoming` are that they were made of."""
    pair, data = record()
    pair.server.write(TEXT)
    pair.to_client.write(data + pair.sent.read() + data[:7])
    parts: list[bytes] = []
    while pair.to_client.pending or pair.client.pending():  # uvloop's condition
        parts.append(pair.client.read(100))
    assert parts == [TEXT, TEXT]


def test_unread() -> None:
    """A part of a record, a whole one, the end and what is no TLS are unread; nothing is not."""
    pair, data = record()
    assert has_unread(pair.client) is False
    assert has_unread(pair.server) is False  # Python's own
    pair.to_client.write(data[:7])
    assert has_unread(pair.client) is True
    pair.to_client.write(data[7:])
    assert has_unread(pair.client) is True
    for bad in (b"HTTP/1.1 200 OK\r\n", b""):
        pair = Pair()
        pair.to_client.write(bad)
        pair.to_client.write_eof()
        assert has_unread(pair.client) is True


@pytest.mark.parametrize("size", [0, 7])
def test_end(size: int) -> None:
    """The end of the stream ends TLS at once, also within a record."""
    pair, data = record()
    pair.to_client.write(data[:size])
    pair.to_client.write_eof()
    for _ in range(2):
        with pytest.raises(ssl.SSLEOFError):
            pair.client.read(1)
    assert pair.client.has_part is False  # type: ignore[attr-defined]  # checked when it was made


def test_orderly_end() -> None:
    """Both sides can end TLS."""
    pair = Pair()
    with pytest.raises(ssl.SSLWantReadError):
        pair.server.unwrap()
    pair.to_client.write(pair.sent.read())
    assert pair.said() == b""
    pair.client.unwrap()
    pair.server.unwrap()


def test_read_into() -> None:
    """Data can be read into a buffer, as asyncio does."""
    pair, data = record()
    pair.to_client.write(data)
    buffer = bytearray(100)
    pair.client.read(100, buffer)
    assert buffer.rstrip(b"\0") == TEXT


@pytest.mark.parametrize(
    "data", [b"HTTP/1.1 200 OK\r\n", b"\x16\x01\x01\x00\x05", b"\x17\x03\x03\xff\xff"]
)
def test_not_a_record(data: bytes) -> None:
    """Bytes that are not TLS are passed on at once, for OpenSSL to reject."""
    assert length_of_records(data) == len(data)
    pair = Pair()
    pair.to_client.write(data)
    with pytest.raises(ssl.SSLError):
        pair.client.read(1)


def test_certificate_error() -> None:
    """A rejected certificate is found among the causes of an exception, and nothing else is."""
    rejected = OSError("no connection")
    rejected.__cause__ = ssl.SSLCertVerificationError("expired")
    assert is_certificate_error(rejected)
    assert not is_certificate_error(ssl.SSLError("unexpected message"))


CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIByTCCAW+gAwIBAgIUWGJkRmeXd51y2luadU/QCxuwQ90wCgYIKoZIzj0EAwIw
QDEXMBUGA1UECgwOdHJ1c3RtZSB2MS4yLjExJTAjBgNVBAsMHFRlc3RpbmcgQ0Eg
I0sxVWFSQzh6MGxrTGtSc3gwIBcNMDAwMTAxMDAwMDAwWhgPMzAwMDAxMDEwMDAw
MDBaMEAxFzAVBgNVBAoMDnRydXN0bWUgdjEuMi4xMSUwIwYDVQQLDBxUZXN0aW5n
IENBICNLMVVhUkM4ejBsa0xrUnN4MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE
yez4tAxPwe041Tya/wM3qOtfR1PAj89aP4xhh2kPOCnHJSEFu/FkP+lz+dKe3Acz
gJNUn4zJavbGzH71VNcJhaNFMEMwHQYDVR0OBBYEFBa4CxhP9Re7MRMj0nOyKcDp
dwpqMBIGA1UdEwEB/wQIMAYBAf8CAQkwDgYDVR0PAQH/BAQDAgGGMAoGCCqGSM49
BAMCA0gAMEUCIQDmTifRSncu3FzZqu7B5nR1vkDx88oz8i32mf6hKlBGZAIgVYNG
rjrRQDcoLbnl6sEuVTqchv0qqzJwZZe3bK3L+hc=
-----END CERTIFICATE-----
"""


def test_client_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The context trusts the certificates in SSL_CERT_FILE, and verifies the server's."""
    file = tmp_path / "ca.pem"
    file.write_text(CERTIFICATE, encoding="ascii")
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    context = client_context()
    assert ssl.PEM_cert_to_DER_cert(CERTIFICATE) in context.get_ca_certs(binary_form=True)
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED


@pytest.mark.parametrize("value", [None, ""], ids=repr)
def test_client_context_without_a_file(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without SSL_CERT_FILE, the context trusts the system's certificates."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    if value is not None:
        monkeypatch.setenv("SSL_CERT_FILE", value)
    assert client_context().verify_mode is ssl.CERT_REQUIRED


@pytest.mark.parametrize("text", [None, "", "no certificate"], ids=["missing", "empty", "text"])
def test_client_context_with_an_unusable_file(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An SSL_CERT_FILE that cannot be used raises an error that names the file."""
    file = tmp_path / "ca.pem"
    if text is not None:
        file.write_text(text, encoding="ascii")
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    wanted = "SSL_CERT_FILE must name a file of certificates, not '.*ca.pem': .+"
    with pytest.raises(ValueError, match=wanted):
        client_context()


def test_context_of_a_caller() -> None:
    """A client's context, or none, is accepted. Anything else is rejected."""
    check_client_context(None)
    check_client_context(context(ssl.PROTOCOL_TLS_CLIENT))
    with pytest.raises(TypeError, match=r"^ssl_context must be an ssl\.SSLContext, such as "):
        check_client_context("ca.pem")
    with pytest.raises(ValueError, match=r"^ssl_context must be a client's"):
        check_client_context(context(ssl.PROTOCOL_TLS_SERVER))


def test_class_of_a_caller() -> None:
    """A caller's context makes our TLS objects, unless it has a class of its own."""

    class Theirs(ssl.SSLObject):
        """A class of the caller's."""

    plain, special = context(ssl.PROTOCOL_TLS_CLIENT), context(ssl.PROTOCOL_TLS_CLIENT)
    special.sslobject_class = Theirs
    for it in (plain, special):
        detect_partial_records(it)
    assert plain.sslobject_class is WholeRecords
    assert special.sslobject_class is Theirs


def test_settings_beside_a_supplied_client() -> None:
    """A setting beside a supplied client is rejected by its name."""
    check_not_both("session", proxy=None, ssl_context=None)
    with pytest.raises(ValueError, match="pass proxy to the session that you supply"):
        check_not_both("session", ssl_context=None, proxy="http://h")
