"""What the adapters share, and the core itself does not use."""

import ssl
from pathlib import Path

import pytest

from creduse_core.arguments import not_loopback_message
from creduse_core.tls import client_context

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


def test_not_loopback_message() -> None:
    """The message names the host and its address, and says what to do."""
    assert not_loopback_message("localhost", "192.0.2.7") == (
        "localhost is at 192.0.2.7, which is not this machine: over plain http, anyone on the way "
        "can read the API key; use https, or pass allow_http=True"
    )
