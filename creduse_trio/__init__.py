"""A Creduse client for trio. It uses trio's streams and h11, and has its own connection pool.

Example::

    from creduse_trio import AsyncCreduseClient

    async with AsyncCreduseClient() as client:
        await client.add(end_user_id, 100)

It does not import asyncio, anyio or httpx. Its results and errors are those of ``creduse_core``.
"""

try:
    from ._client import AsyncCreduseClient
except ModuleNotFoundError as error:
    if error.name != "trio":
        raise
    raise ImportError("creduse_trio needs trio: pip install 'creduse[trio]'") from None

__all__ = ["AsyncCreduseClient"]
