"""A client's place in an ``aiohttp.web`` application. What it sends, and how, is not told here."""

from collections.abc import AsyncIterator, Callable
from typing import Final

from aiohttp import ClientSession, web

from creduse_core import DEFAULT_RETRY, TIMEOUT, Attempt, RetryPolicy, Secret

from ._client import AsyncCreduseClient

CLIENT: Final = web.AppKey("creduse_aiohttp.CLIENT", AsyncCreduseClient)
"""Where handlers find the client: ``request.app[CLIENT]``."""


def setup(  # noqa: PLR0913 - the client's arguments, and two
    app: web.Application,
    api_key: str | Secret | None = None,
    session: ClientSession | web.AppKey[ClientSession] | None = None,
    *,
    key: web.AppKey[AsyncCreduseClient] = CLIENT,
    base_url: str | None = None,
    timeout: float = TIMEOUT,
    retry: RetryPolicy = DEFAULT_RETRY,
    on_attempt: Callable[[Attempt], object] | None = None,
    allow_http: bool | None = None,
) -> None:
    """Make a client when ``app`` starts, and close it when it ends.

        creduse_aiohttp.setup(app)

        async def handler(request):
            await request.app[creduse_aiohttp.CLIENT].subtract(user, 1)

    - ``session``: also the `web.AppKey` of one. The app's ``cleanup_ctx`` that makes it must be
      added before this is called; then the client is closed first.
    - ``key``: where the client is put. Give each of several clients in one app a key of its own:
      ``web.AppKey("name", AsyncCreduseClient)``.

    All else is as in `AsyncCreduseClient`. What is wrong with it is raised when the app starts.
    A handler of a sub-application finds the client of the app around it in
    ``request.config_dict[CLIENT]``.
    """

    async def client(app: web.Application) -> AsyncIterator[None]:
        if key in app:
            raise RuntimeError(
                f"the app has a client under {key} already: give each one a key of its own, "
                'setup(app, key=web.AppKey("name", AsyncCreduseClient))'
            )
        if isinstance(session, web.AppKey) and session not in app:
            raise RuntimeError(
                f"the app has no session under {session}: add the cleanup_ctx that makes it, "
                "to this same app, before setup()"
            )
        async with AsyncCreduseClient(
            api_key,
            app[session] if isinstance(session, web.AppKey) else session,
            base_url=base_url,
            timeout=timeout,
            retry=retry,
            on_attempt=on_attempt,
            allow_http=allow_http,
        ) as app[key]:
            yield

    app.cleanup_ctx.append(client)
