"""Records of TLS, and whether a part of one is there: it may be of a response that nobody asked for.

No I/O, and nothing of certificates. Python's `ssl` takes such a part in, and does not say so.
"""

import ssl  # noqa: TID251 - over memory alone
from typing import Any, Final

_HEADER: Final = 5
_LONGEST: Final = 2**14 + 2048  # up to TLS 1.2 (RFC 5246, 6.2.3)
_TYPES: Final = range(20, 25)


def length_of_records(data: bytes | bytearray) -> int:
    """Return how many of the bytes make whole records; ``data`` begins with a record.

    A record is a type, a version, a length, and that many bytes (RFC 8446, 5.1). What is no record
    is for OpenSSL to reject, at once, and so counts as whole.
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


class WholeRecords(ssl.SSLObject):
    """TLS over memory that is given whole records alone, and says whether a part of one has come.

    To be set as the ``sslobject_class`` of a context, which makes one for each connection.
    """

    @classmethod
    def _create(cls, incoming: ssl.MemoryBIO, *arguments: Any, **settings: Any) -> Any:
        # ``wrap_bio`` calls this, and there is no public way to give the object something of one's
        # own: https://github.com/python/cpython/blob/v3.13.0/Lib/ssl.py#L814. Where the name is
        # gone, or the context somebody's own, its objects are Python's.
        records = ssl.MemoryBIO()
        made: Any = super()._create(records, *arguments, **settings)  # type: ignore[misc]  # see above
        made._take_from(incoming, records)  # noqa: SLF001  # pyright: ignore[reportUnknownMemberType]  # it is of this class
        return made  # pyright: ignore[reportUnknownVariableType]  # as above

    def _take_from(self, incoming: ssl.MemoryBIO, records: ssl.MemoryBIO) -> None:
        self._incoming = incoming
        self._records = records
        self._part = bytearray()

    @property
    def has_part(self) -> bool:
        """Whether there are bytes that TLS has not been given, since their record goes on."""
        self._take_in()
        return bool(self._part)

    def _take_in(self) -> None:
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

    # Whatever may read a record.

    def do_handshake(self) -> None:
        """Agree on TLS."""
        self._take_in()
        super().do_handshake()

    def read(self, len: int = 1024, buffer: Any = None) -> Any:  # noqa: A002 - Python's name
        """Read up to so many bytes."""
        self._take_in()
        return super().read(len, buffer)

    def write(self, data: Any) -> int:
        """Write some bytes."""
        self._take_in()
        return super().write(data)

    def unwrap(self) -> None:
        """End TLS, as the peer must, too."""
        self._take_in()
        super().unwrap()
