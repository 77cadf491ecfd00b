"""A Creduse client over aiohttp, and its setup in an ``aiohttp.web`` app.

A client opens its connections at the first call. It uses a supplied session only for its
connections, proxy and TLS settings. `setup` opens and closes a client together with an app.
"""

try:
    import aiohttp as _aiohttp
except ModuleNotFoundError as error:
    if error.name != "aiohttp":
        raise
    raise ImportError("creduse_aiohttp needs aiohttp: pip install 'creduse[aiohttp]'") from None

from ._app import CLIENT, setup
from ._client import AsyncCreduseClient

del _aiohttp

__all__ = ["CLIENT", "AsyncCreduseClient", "setup"]
