"""The Creduse client for trio: over trio's streams and h11, with a connection pool of its own.

    from creduse_trio import AsyncCreduseClient

    async with AsyncCreduseClient() as client:
        await client.add(end_user_id, 100)

It imports no asyncio, no anyio and no httpx. Its results and errors are those of ``creduse_core``.
"""

try:
    from ._client import AsyncCreduseClient
except ModuleNotFoundError as error:
    if error.name != "trio":
        raise
    raise ImportError("creduse_trio needs trio: pip install 'creduse[trio]'") from None

__all__ = ["AsyncCreduseClient"]
