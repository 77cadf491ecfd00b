"""The Creduse clients over httpx: `CreduseClient`, and `AsyncCreduseClient` on asyncio and trio.

A client opens its connections when they are needed. A supplied `httpx.Client` is used for its
connections, proxies and TLS settings, and for nothing else.
"""

from ._clients import AsyncCreduseClient, CreduseClient

__all__ = ["AsyncCreduseClient", "CreduseClient"]
