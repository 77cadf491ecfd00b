"""The texts of errors that several adapters raise."""

from creduse_core.error_texts import not_loopback_message


def test_not_loopback_message() -> None:
    """The message names the host and its address, and says what to do."""
    assert not_loopback_message("localhost", "192.0.2.7") == (
        "localhost is at 192.0.2.7, which is not this machine: over plain http, anyone on the way "
        "can read the API key; use https, or pass allow_http=True"
    )
