"""The Creduse client over aiohttp, and its place in an ``aiohttp.web`` app.

A client opens its connections at the first call. A session that you hand in lends its connections,
proxies and TLS settings, and nothing else. `setup` has a client open and close with an app.
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
