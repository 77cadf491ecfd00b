"""The proxy that the environment names. Its password shows nowhere."""

import os
from collections.abc import Callable
from typing import Any

import pytest

from creduse_core import CreduseProtocol, is_loopback, proxy_for, proxy_from_environment
from creduse_core.environment import is_secure

URL = "https://api.creduse.com"


@pytest.fixture
def proxies(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set these variables, and no others about proxies."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)

    def set_all(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_all


@pytest.mark.parametrize(
    ("variables", "base_url", "found"),
    [
        ({}, URL, None),
        ({"HTTPS_PROXY": "http://p.example:3128"}, URL, ("http://p.example:3128",) * 2),
        ({"HTTPS_PROXY": "p.example:3128"}, URL, ("http://p.example:3128",) * 2),
        ({"ALL_PROXY": "https://p.example/"}, URL, ("https://p.example", "https://p.example/")),
        (
            {"HTTPS_PROXY": "http://u:p%23w@[::1]:3128"},
            URL,
            ("http://[::1]:3128", "http://u:p%23w@[::1]:3128"),
        ),
        ({"HTTP_PROXY": "http://p.example"}, URL, None),
        ({"HTTP_PROXY": "http://p.example"}, "http://a.example", ("http://p.example",) * 2),
        ({"HTTPS_PROXY": "http://p.example", "NO_PROXY": "creduse.com"}, URL, None),
        ({"HTTPS_PROXY": ""}, URL, None),
    ],
)
def test_proxy(
    proxies: Callable[..., None],
    variables: dict[str, str],
    base_url: str,
    found: tuple[str, str] | None,
) -> None:
    """The proxy is the one for the URL's scheme, or for all, unless the host is excepted."""
    proxies(**variables)
    proxy = proxy_from_environment(base_url)
    assert (None if proxy is None else (proxy.shown, proxy.url.reveal())) == found


@pytest.mark.parametrize(
    "url",
    [
        "http://user:hunter2#x@p.example",
        "http://user:hunter2?x@p.example",
        "http://user:hunter2/x@p.example",
        "http://user:hunter2@p.example:99999",
        "http://user:hunter2@[::1",
        "user:hunter2#@p.example",
        "http://user:hunter2@",
        " http://user:hunter2@p.example",
        "http://user:hunter2@p.example\n",
    ],
)
def test_malformed_proxy(proxies: Callable[..., None], url: str) -> None:
    """A malformed proxy URL is rejected; neither the message nor a frame shows the password."""
    proxies(HTTPS_PROXY=url)
    with pytest.raises(ValueError, match=r"must be a URL such as http://proxy.example") as caught:
        proxy_from_environment(URL)
    shown = [str(caught.value)]
    traceback: Any = caught.value.__traceback__.tb_next if caught.value.__traceback__ else None
    while traceback is not None:  # from the frame below this test's
        shown += [repr(value) for value in traceback.tb_frame.f_locals.values()]
        traceback = traceback.tb_next
    assert len(shown) > 1
    assert [text for text in shown if "hunter2" in text] == []


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("api.localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::1%lo", True),
        ("::ffff:10.0.0.1", False),
        ("10.0.0.1", False),
        ("0.0.0.0", False),  # noqa: S104 - no address to bind to
        ("fe80::1%eth0", False),
        ("localhost.example", False),
        ("notlocalhost", False),
        ("", False),
    ],
)
def test_is_loopback(host: str, loopback: bool) -> None:  # noqa: FBT001 - a column
    """Loopback hosts are recognized by name and by every form of their address."""
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("base_url", "given", "found"),
    [
        (URL, None, "http://env.example"),
        (URL, "https://u:w@own.example:3128", "https://own.example:3128"),
        ("https://localhost", None, None),
        ("https://localhost", "own.example", "http://own.example"),
    ],
)
def test_own_proxy(
    proxies: Callable[..., None], base_url: str, given: str | None, found: str | None
) -> None:
    """A client's own proxy comes before the environment's, and is used for this machine, too."""
    proxies(ALL_PROXY="http://env.example")
    proxy = proxy_for(CreduseProtocol("key", base_url), given)
    assert (None if proxy is None else proxy.shown) == found
    assert is_secure(proxy) is (found is not None and found.startswith("https:"))


@pytest.mark.parametrize(
    "given", [7, "", "http://", "http://u:p@ss/w0rd@own.example", "http://x/y"]
)
def test_wrong_own_proxy(given: Any) -> None:
    """A proxy that is no URL of one is rejected, and the message does not show it."""
    with pytest.raises((TypeError, ValueError), match=r"^proxy must be ") as caught:
        proxy_for(CreduseProtocol("key", URL), given)
    assert "w0rd" not in str(caught.value)
