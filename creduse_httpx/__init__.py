"""The Creduse clients over httpx: `CreduseClient`, and `AsyncCreduseClient` on asyncio and trio.

A client opens its connections at the first call. One that you hand in lends its connections,
proxies and TLS settings, and nothing else.
"""

from ._async import AsyncCreduseClient
from ._sync import CreduseClient

__all__ = ["AsyncCreduseClient", "CreduseClient"]
