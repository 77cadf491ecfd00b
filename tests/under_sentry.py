"""Print what Sentry and the server get from each kind of client, as JSON.

Sentry patches the interpreter for good, so ``python -m tests.under_sentry`` is a process of its own.
"""

import json
from typing import Any

import sentry_sdk
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from sentry_sdk.envelope import Envelope
from sentry_sdk.scrubber import EventScrubber
from sentry_sdk.transport import Transport

from creduse_core import Attempt, CreduseError
from creduse_sandbox import FAULTS, CannedResponse, SandboxServer
from tests.common import KEY, ONCE, USER
from tests.kinds import KINDS, PLAIN

FAILURES = {name: FAULTS[name] for name in ("apply-then-reset", "503", "not-json")} | {
    "the key in the response": CannedResponse(401, body=f"Bearer {KEY} is not valid".encode())
}


class Collector(Transport):
    """Keeps what Sentry would send."""

    items: list[Any] = []  # noqa: RUF012 - Sentry makes the instance

    def capture_envelope(self, envelope: Envelope) -> None:
        self.items += [(item.type, item.payload.json) for item in envelope.items]


def event_with_key() -> dict[str, Any]:
    """Return an event of a frame that has the API key in a variable."""
    field = f"Bearer {KEY}"
    try:
        field.index("not in it")
    except ValueError as error:
        sentry_sdk.capture_exception(error)
    sentry_sdk.flush()
    return {"events": list(Collector.items)}


def main() -> None:
    """Run each kind, and print what came of it."""
    sentry_sdk.init(
        dsn="https://key@sentry.example/1",
        transport=Collector,
        traces_sample_rate=1.0,
        attach_stacktrace=True,
        send_default_pii=True,
        include_local_variables=True,
        event_scrubber=EventScrubber(denylist=[], pii_denylist=[]),  # the clients must not need it
    )
    for instrumentor in HTTPXClientInstrumentor(), AioHttpClientInstrumentor():
        instrumentor.instrument()  # so that its frames are there, too
    found: dict[str, Any] = {}
    with SandboxServer() as server:
        for kind, run in KINDS.items():

            async def calls(client: Any) -> None:
                with sentry_sdk.start_transaction(name="ours"):
                    await client.add(USER, 5)
                    for name in FAILURES:  # no variable here may hold the key
                        server.inject(FAILURES[name])
                        try:
                            await client.subtract(USER, 7)
                        except CreduseError as error:
                            sentry_sdk.capture_exception(error)

            def listen(attempt: Attempt) -> None:
                if attempt.path == "/add":
                    sentry_sdk.capture_message("within a call")
                    raise LookupError("a listener's own error, which the client logs")

            run(PLAIN, calls, base_url=server.base_url, retry=ONCE, on_attempt=listen)
            sentry_sdk.flush()
            found[kind] = {
                "events": [item for type_, item in Collector.items if type_ == "event"],
                "transactions": [item for type_, item in Collector.items if type_ == "transaction"],
                "headers": [
                    [it for it in entry.headers if it[0].lower() in {"sentry-trace", "baggage"}]
                    for entry in server.log
                ],
            }
            Collector.items.clear()
            server.reset()
    found["a key in a variable"] = event_with_key()
    print(json.dumps(found, default=repr))  # noqa: T201 - its parent reads it


if __name__ == "__main__":
    main()
