"""A metered endpoint: it takes the credits for a summary, then does the work.

    CREDUSE_API_KEY=your-api-key python app.py
    curl http://127.0.0.1:8080/summaries -H 'End-User: 12345678-1234-5678-1234-567812345678' \
        -d 'A long text.'

To try it without an account, run `creduse sandbox --port 8000`, and set
CREDUSE_BASE_URL=http://127.0.0.1:8000.
"""

import logging
from collections.abc import AsyncIterator
from uuid import UUID

from aiohttp import ClientSession, web

import creduse_aiohttp
from creduse import CannotPayError, CreduseError, Outcome

PRICE = 5
SESSION = web.AppKey("SESSION", ClientSession)
logger = logging.getLogger(__name__)


async def session(app: web.Application) -> AsyncIterator[None]:
    """Open the app's own session, which the Creduse client shares."""
    async with ClientSession() as app[SESSION]:
        yield


async def summarize(request: web.Request) -> web.Response:
    """Take the credits, then do the work."""
    try:
        user = UUID(request.headers["End-User"])
    except (KeyError, ValueError):
        raise web.HTTPBadRequest(text="End-User must be a UUID") from None
    text = await request.text()
    try:
        await request.app[creduse_aiohttp.CLIENT].subtract(user, PRICE)
    except CannotPayError:
        return web.json_response({"error": f"a summary costs {PRICE} credits"}, status=402)
    except CreduseError as error:
        # After APPLIED, go on: the credits were taken, and only the response could not be read.
        if error.outcome is not Outcome.APPLIED:
            # It is not certain that the credits were taken, so do no work.
            logger.warning("creduse: %s", error)  # with the user, the amount and the outcome
            if error.outcome is Outcome.NOT_APPLIED:
                return web.json_response({"error": "try again later"}, status=503)
            # They may have been taken, so do not invite a retry. Let a person look at it.
            return web.json_response({"error": "we will check your credits"}, status=500)
    return web.json_response({"summary": text[:20], "cost": PRICE})


def make_app() -> web.Application:
    """Make the app. The client's settings come from the environment."""
    app = web.Application()
    app.cleanup_ctx.append(session)
    creduse_aiohttp.setup(app, session=SESSION)
    app.router.add_post("/summaries", summarize)
    return app


if __name__ == "__main__":
    web.run_app(make_app(), host="127.0.0.1")
