"""Creduse clients over httpx: `CreduseClient`, and `AsyncCreduseClient` for asyncio and trio.

A client opens connections when it needs them. It uses a supplied `httpx.Client` only for its
connections, proxies and TLS settings.
"""

from ._clients import AsyncCreduseClient, CreduseClient

__all__ = ["AsyncCreduseClient", "CreduseClient"]
