"""Setup of a client in an ``aiohttp.web`` app. How the client sends does not belong here."""

import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final

from aiohttp import ClientSession, web

from creduse_core import DEFAULT_RETRY, Attempt, FinishedCall, Pace, RetryPolicy, Secret

from ._client import AsyncCreduseClient

CLIENT: Final = web.AppKey("creduse_aiohttp.CLIENT", AsyncCreduseClient)
"""The key of the client in an app: ``request.app[CLIENT]``."""


def setup(  # noqa: PLR0913 - two more than the client's
    app: web.Application,
    api_key: str | Secret | None = None,
    session: ClientSession | web.AppKey[ClientSession] | None = None,
    *,
    key: web.AppKey[AsyncCreduseClient] = CLIENT,
    base_url: str | None = None,
    timeout: float | None = None,
    retry: RetryPolicy = DEFAULT_RETRY,
    on_attempt: Callable[[Attempt], object] | None = None,
    allow_http: bool | None = None,
    pace: Pace | None = None,
    on_call: Callable[[FinishedCall], object] | None = None,
    ssl_context: ssl.SSLContext | None = None,
    proxy: str | None = None,
    extra_headers: Mapping[str, str | Secret] | None = None,
) -> None:
    """Make a client when ``app`` starts, and close it when the app ends.

    Example::

        creduse_aiohttp.setup(app)

        async def handler(request):
            await request.app[creduse_aiohttp.CLIENT].subtract(user, 1)

    - ``session``: a session, or the `web.AppKey` of one in ``app``. Then add the ``cleanup_ctx``
      that makes the session before you call ``setup``, so that the client closes first.
    - ``key``: the key of the client in ``app``. For several clients in one app, pass a key for
      each: ``web.AppKey("name", AsyncCreduseClient)``.

    The other arguments are those of `AsyncCreduseClient`. A wrong argument raises when the app
    starts. Handlers of a sub-application find the outer app's client in
    ``request.config_dict[CLIENT]``.
    """

    async def client(app: web.Application) -> AsyncIterator[None]:
        if key in app:
            raise RuntimeError(
                f"the app already has a client under {key}: pass a key for each client, "
                'setup(app, key=web.AppKey("name", AsyncCreduseClient))'
            )
        if isinstance(session, web.AppKey) and session not in app:
            raise RuntimeError(
                f"the app has no session under {session}: add the cleanup_ctx that makes it "
                "to this app before setup()"
            )
        async with AsyncCreduseClient(
            api_key,
            app[session] if isinstance(session, web.AppKey) else session,
            base_url=base_url,
            timeout=timeout,
            retry=retry,
            on_attempt=on_attempt,
            allow_http=allow_http,
            pace=pace,
            on_call=on_call,
            ssl_context=ssl_context,
            proxy=proxy,
            extra_headers=extra_headers,
        ) as app[key]:
            yield

    app.cleanup_ctx.append(client)
