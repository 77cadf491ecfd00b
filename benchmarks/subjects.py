"""The subjects: our clients, hand-written code on the same libraries, and lower bounds.

All have the methods ``subtract`` and ``get_balance``. A process loads only the libraries of its subject.
The published client has its own environment, without ours.
"""

import json
import socket
from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple
from urllib.parse import urlsplit

from benchmarks.server import balance, subtracted

if TYPE_CHECKING:
    import h11
    import trio

    from creduse_core import Response, Send

KEY: Final = "sk-0123456789abcdef0123456789abcdef"
HEADERS: Final = {"Authorization": f"Bearer {KEY}"}
MAX_CONCURRENT: Final = 100
"""Connections at a time: as many as our clients have, and as httpx and aiohttp have by default."""
TIMEOUT: Final = 60
"""Seconds: a thousand calls at once wait for their connections longer than httpx's default."""
PIECE: Final = 65536


def ours(module: str, name: str) -> Callable[[str], Any]:
    """Return a function that makes clients of one of our packages."""
    return lambda url: getattr(import_module(module), name)(KEY, base_url=url)


def published(name: str, transport: str) -> Callable[[str], Any]:
    """Return a function that makes published clients. Only their ``http_client`` can set the URL."""

    def make(url: str) -> Any:
        http_client = getattr(import_module("creduse._httpclient"), transport)(KEY, base_url=url)
        return getattr(import_module("creduse"), name)(KEY, http_client=http_client)

    return make


class ByHand:
    """The code that a user would write: a call for any method and path, without checks."""

    call: Callable[[str, str, dict[str, object]], Any]

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.url, self.authority, self.prefix = url, parts.netloc, parts.path
        self.address = parts.hostname or "", parts.port or 80

    def subtract(self, user: str, amount: int) -> Any:
        return self.call("POST", "/subtract", {"end_user_id": user, "amount": amount})

    def get_balance(self, user: str) -> Any:
        return self.call("GET", "/get-active-balance", {"end_user_id": user})


class Httpx(ByHand):
    """On `httpx.Client`; ``request`` is what its ``post`` calls."""

    def __init__(self, url: str) -> None:
        import httpx

        super().__init__(url)
        self.client = httpx.Client(headers=HEADERS, timeout=TIMEOUT)
        self.close = self.client.close

    def call(self, method: str, path: str, asked: dict[str, object]) -> Any:
        return self.client.request(method, f"{self.url}{path}", json=asked).json()


class AsyncHttpx(ByHand):
    """On `httpx.AsyncClient`."""

    def __init__(self, url: str) -> None:
        import httpx

        super().__init__(url)
        self.client = httpx.AsyncClient(headers=HEADERS, timeout=TIMEOUT)
        self.aclose = self.client.aclose

    async def call(self, method: str, path: str, asked: dict[str, object]) -> Any:
        return (await self.client.request(method, f"{self.url}{path}", json=asked)).json()


class Aiohttp(ByHand):
    """On `aiohttp.ClientSession`."""

    def __init__(self, url: str) -> None:
        import aiohttp

        super().__init__(url)
        self.session = aiohttp.ClientSession(headers=HEADERS)
        self.aclose = self.session.close

    async def call(self, method: str, path: str, asked: dict[str, object]) -> Any:
        async with self.session.request(method, f"{self.url}{path}", json=asked) as response:
            return await response.json()


class H11(ByHand):
    """With h11 on trio's streams, which are kept open."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.headers = [
            ("Host", self.authority),
            ("Content-Type", "application/json"),
            *HEADERS.items(),
        ]
        self.idle: list[tuple[h11.Connection, trio.SocketStream]] = []

    async def call(self, method: str, path: str, asked: dict[str, object]) -> Any:
        import h11
        import trio

        if self.idle:
            http, stream = self.idle.pop()
        else:
            http = h11.Connection(h11.CLIENT)
            stream = await trio.open_tcp_stream(*self.address)
        body = json.dumps(asked).encode()
        request = h11.Request(
            method=method,
            target=self.prefix + path,
            headers=[*self.headers, ("Content-Length", str(len(body)))],
        )
        await stream.send_all(
            http.send(request) + http.send(h11.Data(data=body)) + http.send(h11.EndOfMessage())
        )
        chunks: list[bytes] = []
        while not isinstance(event := http.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                http.receive_data(await stream.receive_some())
            elif isinstance(event, h11.Data):
                chunks.append(event.data)
        http.start_next_cycle()
        self.idle.append((http, stream))
        return json.loads(b"".join(chunks))

    async def aclose(self) -> None:
        for _, stream in self.idle:
            await stream.aclose()


class H11Pool(H11):
    """The same, with a bounded number of connections."""

    def __init__(self, url: str) -> None:
        import trio

        super().__init__(url)
        self.places = trio.CapacityLimiter(MAX_CONCURRENT)

    async def call(self, method: str, path: str, asked: dict[str, object]) -> Any:
        async with self.places:
            return await super().call(method, path, asked)


class Bare(ByHand):
    """The lower bound: it sends bytes, receives bytes, and reads only the size of the first response."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.requests: dict[str, bytes] = {}
        self.sizes: dict[str, int] = {}

    def request(self, method: str, path: str, asked: dict[str, object]) -> bytes:
        """Return a request in bytes, made once."""
        if path not in self.requests:
            body = json.dumps(asked)
            head = f"{method} {self.prefix}{path} HTTP/1.1\r\nHost: {self.authority}\r\n"
            self.requests[path] = f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()
        return self.requests[path]

    def missing(self, path: str, response: bytes | bytearray) -> int:
        """Return how many bytes of a response are missing."""
        if path not in self.sizes:
            assert response.startswith(b"HTTP/1.1 200 "), response
            head = response.partition(b"\r\n\r\n")[0]
            self.sizes[path] = len(head) + 4 + int(head.rpartition(b"Content-Length: ")[2])
        return self.sizes[path] - len(response)


class Socket(Bare):
    """On a blocking socket."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.socket = socket.create_connection(self.address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.close = self.socket.close

    def call(self, method: str, path: str, asked: dict[str, object]) -> None:
        self.socket.sendall(self.request(method, path, asked))
        missing = self.missing(path, self.socket.recv(PIECE))
        while missing:
            missing -= len(self.socket.recv(PIECE))


class TrioSocket(Bare):
    """On a trio stream."""

    stream: "trio.SocketStream | None" = None

    async def call(self, method: str, path: str, asked: dict[str, object]) -> None:
        if self.stream is None:
            import trio

            self.stream = await trio.open_tcp_stream(*self.address)
        await self.stream.send_all(self.request(method, path, asked))
        missing = self.missing(path, await self.stream.receive_some(PIECE))
        while missing:
            missing -= len(await self.stream.receive_some(PIECE))

    async def aclose(self) -> None:
        if self.stream is not None:
            await self.stream.aclose()


# Without the network. The server has the same responses at this URL.


def _canned(url: str) -> dict[str, bytes]:
    cycles = int(url.rpartition("/")[2])
    return {"/subtract": subtracted(), "/get-active-balance": balance(cycles)}


class Core:
    """The core: from the arguments to the request, and from the response to the result."""

    def __init__(self, url: str) -> None:
        from creduse_core import CreduseProtocol, Response

        self.protocol = CreduseProtocol(KEY, url)
        bodies = _canned(url).items()
        headers = (("Content-Type", "application/json"),)
        self.responses = {path: Response(200, headers, body) for path, body in bodies}

    def subtract(self, user: str, amount: int) -> object:
        call = self.protocol.subtract(user, amount)
        call.start(0.0)
        return call.receive_response(self.responses["/subtract"], 0.0)

    def get_balance(self, user: str) -> object:
        call = self.protocol.get_balance(user)
        call.start(0.0)
        return call.receive_response(self.responses["/get-active-balance"], 0.0)


def core_client(url: str) -> Any:
    """Return the core's client over a transport that has its responses at once.

    It runs all of our code in a call but the adapter's.
    """
    from creduse_core import CoreClient, CreduseProtocol, Response

    responses = {f"{url}{path}": body for path, body in _canned(url).items()}
    headers = (("Content-Type", "application/json"),)

    def exchange(send: "Send") -> "Response":
        response = Response(200, headers, responses[send.request.url])
        assert send.allows_reuse(response)
        return response

    transport: Any = SimpleNamespace(send=exchange, now=lambda: 0.0, close=lambda: None)
    return CoreClient(CreduseProtocol(KEY, url), transport)


class PublishedModels:
    """The published client's call without httpx: its models, and JSON as httpx reads it."""

    def __init__(self, url: str) -> None:
        self.models: Any = import_module("creduse.models.response_models")
        self.responses = _canned(url)

    def subtract(self, user: str, amount: int) -> object:
        model = self.models.SubtractCreditModel
        body = model(end_user_id=user, amount=amount).model_dump(mode="json")
        return model(**self.exchange("/subtract", body))

    def get_balance(self, user: str) -> object:
        body = self.models.GetBalanceRequest(end_user_id=user).model_dump(mode="json")
        return self.models.ActiveBalance(**self.exchange("/get-active-balance", body))

    def exchange(self, path: str, body: object) -> Any:
        """Write the JSON of the request, and read the JSON of the response."""
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        text.encode("utf-8")
        return json.loads(self.responses[path])


class Subject(NamedTuple):
    """A subject of the benchmarks."""

    title: str
    style: Literal["sync", "asyncio", "trio"]
    make: Callable[[str], Any]
    """Makes a client for the server at this URL, on the event loop if there is one."""
    imports: str
    """What a program that uses it imports."""
    published: bool = False
    """Whether it runs in the published client's environment."""


_httpx = ours("creduse_httpx", "CreduseClient")
_httpx_async = ours("creduse_httpx", "AsyncCreduseClient")
_aiohttp = ours("creduse_aiohttp", "AsyncCreduseClient")
_trio = ours("creduse_trio", "AsyncCreduseClient")
_published = published("CreduseClient", "SyncHttpClient")
_published_async = published("AsyncCreduseClient", "AsyncHttpClient")

SUBJECTS: Final = {
    "httpx": Subject("creduse_httpx", "sync", _httpx, "creduse"),
    "httpx-asyncio": Subject("creduse_httpx, asyncio", "asyncio", _httpx_async, "creduse"),
    "httpx-trio": Subject("creduse_httpx, trio", "trio", _httpx_async, "creduse, trio"),
    "aiohttp": Subject("creduse_aiohttp", "asyncio", _aiohttp, "creduse_aiohttp"),
    "trio": Subject("creduse_trio", "trio", _trio, "creduse_trio"),
    "hand-httpx": Subject("httpx by hand", "sync", Httpx, "httpx"),
    "hand-httpx-asyncio": Subject("httpx by hand, asyncio", "asyncio", AsyncHttpx, "httpx"),
    "hand-httpx-trio": Subject("httpx by hand, trio", "trio", AsyncHttpx, "httpx, trio"),
    "hand-aiohttp": Subject("aiohttp by hand", "asyncio", Aiohttp, "aiohttp"),
    "hand-trio": Subject("h11 on trio by hand", "trio", H11, "h11, trio"),
    "hand-trio-pool": Subject("h11 on trio by hand, a pool", "trio", H11Pool, "h11, trio"),
    "published": Subject("creduse 0.1.10", "sync", _published, "creduse", published=True),
    "published-asyncio": Subject(
        "creduse 0.1.10, asyncio", "asyncio", _published_async, "creduse", published=True
    ),
    "socket": Subject("bare socket", "sync", Socket, "socket"),
    "trio-socket": Subject("bare trio stream", "trio", TrioSocket, "trio"),
    "core": Subject("creduse_core", "sync", Core, "creduse_core"),
    "core-client": Subject("creduse_core and its client", "sync", core_client, "creduse_core"),
    "published-models": Subject(
        "models of creduse 0.1.10", "sync", PublishedModels, "creduse", published=True
    ),
}
