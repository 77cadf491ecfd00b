"""What a server can be ordered to do in place of its work.

Faults are plain data and all of them live here. How the server carries them out, and its
sockets, must not.
"""

from dataclasses import dataclass
from typing import TypeAlias

from creduse_core.messages import HeaderPairs


@dataclass(frozen=True, slots=True)
class Answer:
    """Give this answer; the request does not reach the sandbox, so nothing is applied.

    The server adds ``Date`` where it is missing, and the framing: a ``Content-Length`` or
    ``Transfer-Encoding`` of one's own is a `ValueError`, and so is a status below 200, which
    would be no answer yet, or above 999.
    """

    status: int
    headers: HeaderPairs = ()
    body: bytes = b""

    def __post_init__(self) -> None:
        """Refuse what could not be sent, where it is ordered rather than in the server."""
        if not 200 <= self.status <= 999:
            raise ValueError(f"{self.status} is not the status of a final answer")
        framing = {"content-length", "transfer-encoding"}
        if framing.intersection(name.lower() for name, _ in self.headers):
            raise ValueError("the server frames the answer itself")


Fault: TypeAlias = Answer
"""Any of the faults."""
