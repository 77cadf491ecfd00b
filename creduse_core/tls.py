"""TLS details that the adapters share: certificates, and records that have arrived in part.

Python's `ssl` reads a part of a record, and does not say that it has one. That part can belong to a
response that nobody requested. Sockets do not belong here. Only `load_cert_file` and
`client_context` read files.
"""

import os
import ssl  # noqa: TID251 - no sockets
from typing import Any, Final

from .foreign import exception_chain

_HEADER: Final = 5
_LONGEST: Final = 2**14 + 2048  # up to TLS 1.2 (RFC 5246, 6.2.3)
_TYPES: Final = range(20, 25)


def client_context() -> ssl.SSLContext:
    """Return a context that trusts the system's certificates, and those in ``SSL_CERT_FILE``.

    Raises:
        ValueError: ``SSL_CERT_FILE`` cannot be used. OpenSSL ignores it, and then rejects every
            certificate.
    """
    context = ssl.create_default_context()
    load_cert_file(context)
    return context


def load_cert_file(context: ssl.SSLContext) -> None:
    """Let a context trust the certificates in ``SSL_CERT_FILE``, if the variable is set.

    Raises:
        ValueError: The file cannot be used. The message names it.
    """
    if file := os.environ.get("SSL_CERT_FILE"):
        try:
            context.load_verify_locations(file)
        except OSError as error:
            raise ValueError(
                f"SSL_CERT_FILE must name a file of certificates, not {file!r}: {error}"
            ) from None


def check_client_context(value: object) -> None:
    """Accept ``None`` or a TLS context for a client, for the argument ``ssl_context``."""
    if not isinstance(value, ssl.SSLContext | None):
        raise TypeError(
            "ssl_context must be an ssl.SSLContext, such as ssl.create_default_context(), "
            f"not {type(value).__name__}"
        )
    if value is not None and value.protocol is ssl.PROTOCOL_TLS_SERVER:
        raise ValueError("ssl_context must be a client's, not one made with PROTOCOL_TLS_SERVER")


def detect_partial_records(context: ssl.SSLContext) -> None:
    """Let a context make `WholeRecords`, unless it makes objects of another class already."""
    if context.sslobject_class is ssl.SSLObject:
        context.sslobject_class = WholeRecords


def length_of_records(data: bytes | bytearray) -> int:
    """Return how many of the bytes are whole records. ``data`` begins with a record.

    A record has a type, a version, a length, and that many bytes (RFC 8446, 5.1). Data that is not a
    record counts as whole, so that OpenSSL rejects it at once.
    """
    end = 0
    while len(data) >= end + _HEADER:
        length = int.from_bytes(data[end + 3 : end + _HEADER])
        if data[end] not in _TYPES or data[end + 1] != 3 or length > _LONGEST:
            return len(data)
        if end + _HEADER + length > len(data):
            break
        end += _HEADER + length
    return end


def is_certificate_error(error: BaseException) -> bool:
    """Return whether a rejected certificate caused an exception. A retry cannot help then."""
    return any(isinstance(link, ssl.SSLCertVerificationError) for link in exception_chain(error))


def has_unread(ssl_object: ssl.SSLObject) -> bool:
    """Return whether a TLS object holds unread bytes, or has ended.

    A session ticket does not count. Part of a record shows only with `WholeRecords`. If there are
    bytes, this reads one of them, so the connection cannot be used any more.
    """
    try:
        ssl_object.read(1)
    except ssl.SSLWantReadError:
        return isinstance(ssl_object, WholeRecords) and ssl_object.has_part
    except ssl.SSLError:
        pass
    return True


class WholeRecords(ssl.SSLObject):
    """A TLS object that gets only whole records, and knows whether a part of one has arrived.

    Set it as the ``sslobject_class`` of a context. The context makes one for each connection.
    """

    @classmethod
    def _create(cls, incoming: ssl.MemoryBIO, *arguments: Any, **settings: Any) -> Any:
        # ``wrap_bio`` calls this method. There is no public way to pass more to the object:
        # https://github.com/python/cpython/blob/v3.13.0/Lib/ssl.py#L814. Without this name, and with
        # other classes of contexts, the objects are Python's own, and parts of records do not show.
        records = ssl.MemoryBIO()
        made: Any = super()._create(records, *arguments, **settings)  # type: ignore[misc]  # see above
        made._attach(incoming, records)  # noqa: SLF001  # pyright: ignore[reportUnknownMemberType]  # it is of this class
        return made  # pyright: ignore[reportUnknownVariableType]  # as above

    def _attach(self, incoming: ssl.MemoryBIO, records: ssl.MemoryBIO) -> None:
        self._incoming = incoming
        self._records = records
        self._part = bytearray()

    @property
    def has_part(self) -> bool:
        """Whether the last record has arrived only in part."""
        self._feed_whole_records()
        return bool(self._part)

    def _feed_whole_records(self) -> None:
        if self._incoming.pending:
            self._part += self._incoming.read()
            end = length_of_records(self._part)
            self._records.write(self._part[:end])
            del self._part[:end]
        if self._incoming.eof:
            if self._part:
                self._records.write(self._part)
                self._part.clear()
            self._records.write_eof()

    def pending(self) -> int:
        """Return how many bytes can be read, or are in whole records that are not decrypted yet.

        uvloop, from 0.23 on, reads only while this or ``incoming`` says that something is pending:
        https://github.com/MagicStack/uvloop/blob/a308f75ff8f1/uvloop/sslproto.pyx#L831.
        """
        self._feed_whole_records()
        return super().pending() + self._records.pending

    # The methods that can read a record.

    def do_handshake(self) -> None:
        """Feed whole records, then do the handshake."""
        self._feed_whole_records()
        super().do_handshake()

    def read(self, len: int = 1024, buffer: Any = None) -> Any:  # noqa: A002 - Python's name
        """Feed whole records, then read up to ``len`` bytes."""
        self._feed_whole_records()
        return super().read(len, buffer)

    def write(self, data: Any) -> int:
        """Feed whole records, then encrypt ``data``."""
        self._feed_whole_records()
        return super().write(data)

    def unwrap(self) -> None:
        """Feed whole records, then end TLS. The peer must end it, too."""
        self._feed_whole_records()
        super().unwrap()
