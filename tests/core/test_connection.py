"""The base URL and the API key: arguments, the environment, and error messages."""

import re
from typing import Any

import pytest

from creduse_core import BASE_URL, DEFAULT_RETRY, TIMEOUT, CreduseProtocol, RetryPolicy
from creduse_core import protocol_from_environment as from_environment
from tests.common import USER_ID

KEY = "sk-live-0123456789"
NAME = "base_url (or CREDUSE_BASE_URL)"
SCHEME = "must begin with https:// (or http:// for a loopback host)"
HOST = "must name a host, as in https://api.creduse.com"
QUERY = "must have no query and no fragment"
VISIBLE = "must be a URL such as https://api.creduse.com, in visible ASCII characters"
HTTPS = (
    "must be https, since over http anyone on the way can read the API key; "
    "to send it all the same, pass allow_http=True or set CREDUSE_ALLOW_HTTP=1"
)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CREDUSE_API_KEY", "CREDUSE_BASE_URL", "CREDUSE_ALLOW_HTTP", "CREDUSE_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)


def url_of(protocol: CreduseProtocol) -> str:
    return protocol.get_balance(USER_ID).request.url


def find(api_key: str | None = None, base_url: str | None = None, **more: Any) -> CreduseProtocol:
    options: dict[str, Any] = {"retry": DEFAULT_RETRY, "timeout": TIMEOUT, "allow_http": None}
    return from_environment(api_key, base_url=base_url, **options | more)


@pytest.mark.parametrize("key", ["", " ", "\t", "\n", "\u00a0"], ids=ascii)
def test_blank_key(key: str) -> None:
    """A blank key is rejected."""
    with pytest.raises(ValueError, match=r"^api_key \(or CREDUSE_API_KEY\) is blank$"):
        CreduseProtocol(key)


AT_AN_END = "has white space at an end: remove it, such as with .strip()"
SCHEME_INCLUDED = 'must be the key alone, without "Bearer "'
NOT_VISIBLE = "must be visible ASCII characters without white space or control characters"


@pytest.mark.parametrize(
    ("around", "said"),
    [
        (" {}", AT_AN_END),
        ("{} ", AT_AN_END),
        ("{}\n", AT_AN_END),
        ("\r\n{}", AT_AN_END),
        ("{}\u2028", AT_AN_END),
        ("Bearer {}\n", AT_AN_END),
        ("Bearer {}", SCHEME_INCLUDED),
        ("bearer {}", SCHEME_INCLUDED),
        ("{}\0", NOT_VISIBLE),
        ("{}\x7f", NOT_VISIBLE),
        ("{}\u00e9", NOT_VISIBLE),
        ("{}…", NOT_VISIBLE),
        ("{0} {0}", NOT_VISIBLE),
        ("{0}\t{0}", NOT_VISIBLE),
    ],
    ids=ascii,
)
def test_key_that_no_header_can_hold(around: str, said: str) -> None:
    """A key that cannot be a header value is rejected. The message says why, without the key."""
    message = re.escape(f"api_key (or CREDUSE_API_KEY) {said}")
    with pytest.raises(ValueError, match=f"^{message}$"):
        CreduseProtocol(around.format(KEY))


@pytest.mark.parametrize("key", [None, 7, KEY.encode(), [KEY]], ids=lambda key: type(key).__name__)
def test_key_of_another_type(key: Any) -> None:
    """A key must be text."""
    kind = type(key).__name__
    message = re.escape(f"api_key (or CREDUSE_API_KEY) must be str, not {kind}")
    with pytest.raises(TypeError, match=f"^{message}$"):
        CreduseProtocol(key)


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        (BASE_URL, "https://api.creduse.com"),
        ("https://api.creduse.com/", "https://api.creduse.com"),
        ("https://example.com:8443", "https://example.com:8443"),
        ("https://example.com/v1", "https://example.com/v1"),
        ("https://example.com/v1/", "https://example.com/v1"),
        ("https://example.com/a/b%20c//", "https://example.com/a/b%20c"),
        ("https://10.0.0.1", "https://10.0.0.1"),
        ("https://[2001:db8::1]:443/x", "https://[2001:db8::1]:443/x"),
    ],
)
def test_base_url(url: str, sent: str) -> None:
    """A path in the base URL is kept as a prefix; slashes at its end are ignored."""
    protocol = CreduseProtocol(KEY, url)
    assert protocol.base_url == sent
    assert url_of(protocol) == f"{sent}/get-active-balance"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", VISIBLE),
        (" ", VISIBLE),
        ("https://example.com ", VISIBLE),
        ("https://exa mple.com", VISIBLE),
        ("https://example.com\n", VISIBLE),
        ("https://exam\tple.com", VISIBLE),
        ("https://ex\u00e4mple.com", VISIBLE),
        ("https://example.com/\0", VISIBLE),
        ("api.creduse.com", SCHEME),
        ("//api.creduse.com", SCHEME),
        ("/v1", SCHEME),
        ("ftp://example.com", SCHEME),
        ("localhost:8000", SCHEME),
        ("https:", HOST),
        ("https://", HOST),
        ("https:///v1", HOST),
        ("https:example.com", HOST),
        ("https://:8443", HOST),
        ("https://example.com:", HOST),
        ("https://exam%70le.com", HOST),
        ("https://example.com\\@evil.example", "must hold no user name and no password"),
        ("https://example.com\\evil", HOST),
        ("https://example.com?", QUERY),
        ("https://example.com/?a=b", QUERY),
        ("https://example.com#", QUERY),
        ("https://example.com/v1#top", QUERY),
        ("https://example.com:99999", "cannot be read: Port out of range 0-65535"),
        (
            "https://example.com:0",
            "must name a host, as in https://api.creduse.com, and a port other than 0 if any",
        ),
        ("https://example.com:x", "cannot be read: Port could not be cast"),
        ("https://[::1", "cannot be read: Invalid IPv6 URL"),
        ("http://example.com", HTTPS),
        ("http://10.0.0.1:80", HTTPS),
        ("http://0.0.0.0", HTTPS),
        ("http://128.0.0.1", HTTPS),
        ("http://[2001:db8::1]", HTTPS),
        ("http://localhost.example.com", HTTPS),
        ("http://notlocalhost", HTTPS),
        ("http://127.0.0.1.example.com", HTTPS),
    ],
    ids=ascii,
)
def test_bad_base_url(url: str, why: str) -> None:
    """A base URL that cannot be used, or that could expose the key, is rejected with the reason."""
    shown = "" if "@" in url else f" {url!r}"
    with pytest.raises(ValueError, match=re.escape(f"{NAME}{shown} {why}")):
        CreduseProtocol(KEY, url)


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hunter2@example.com",
        "https://hunter2@example.com",
        "https://user:hunter2@",
        "ftp://user:hunter2@example.com",
        "https://user:hunter2@example.com:99999",
        "https://user:hunter2@[::1",
        "https://user:hunter2 @example.com",
        "https://user:hunter2?@example.com",
        "https://user:hunter2/x@example.com",
        "https://user:hunter2#x@example.com",
    ],
)
def test_password_in_base_url(url: str) -> None:
    """User info is rejected, and no message repeats it, however malformed the URL is."""
    with pytest.raises(ValueError, match=r"^base_url \(or CREDUSE_BASE_URL\) ") as caught:
        CreduseProtocol(KEY, url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", [None, 7, b"https://example.com"], ids=repr)
def test_base_url_of_another_type(url: Any) -> None:
    """A base URL must be text."""
    with pytest.raises(TypeError, match=f"must be str, not {type(url).__name__}$"):
        CreduseProtocol(KEY, url)


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost",
        "http://LocalHost:8000",
        "http://api.localhost",
        "http://127.0.0.1:8000/v1",
        "http://127.9.9.9",
        "http://[::1]",
        "http://[::1]:8000",
    ],
)
def test_loopback(url: str) -> None:
    """Plain http is accepted for loopback hosts."""
    assert url_of(CreduseProtocol(KEY, url)) == f"{url}/get-active-balance"


def test_allow_http() -> None:
    """Plain http is accepted for any host with ``allow_http=True``."""
    protocol = CreduseProtocol(KEY, "http://example.com", allow_http=True)
    assert url_of(protocol) == "http://example.com/get-active-balance"


def test_long_url_is_shortened() -> None:
    """A message shows only part of a long URL."""
    with pytest.raises(ValueError, match="must have no query") as caught:
        CreduseProtocol(KEY, f"https://example.com/?{'x' * 10_000}")
    assert len(str(caught.value)) < 400


def test_nothing_in_the_environment() -> None:
    """The error for a missing key names both places for it."""
    with pytest.raises(ValueError, match=r"pass api_key=… or set CREDUSE_API_KEY"):
        find()


def test_defaults() -> None:
    """Without arguments and variables, the service's URL is used."""
    retry = RetryPolicy(max_attempts=1)
    protocol = find(KEY, retry=retry, timeout=3.0)
    assert (protocol.base_url, protocol.retry, protocol.timeout) == (BASE_URL, retry, 3.0)


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key and the base URL come from the environment where they are not arguments."""
    monkeypatch.setenv("CREDUSE_API_KEY", "sk-environment")
    monkeypatch.setenv("CREDUSE_BASE_URL", "https://environment.example/v1")
    protocol = find()
    assert protocol.api_key.reveal() == "sk-environment"
    assert protocol.base_url == "https://environment.example/v1"


def test_arguments_before_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument takes precedence over the environment, even over a wrong value there."""
    monkeypatch.setenv("CREDUSE_API_KEY", "")
    monkeypatch.setenv("CREDUSE_BASE_URL", "nonsense")
    protocol = find(KEY, "https://example.com")
    assert (protocol.api_key.reveal(), protocol.base_url) == (KEY, "https://example.com")


@pytest.mark.parametrize("blank", ["", " "], ids=repr)
@pytest.mark.parametrize("name", ["CREDUSE_API_KEY", "CREDUSE_BASE_URL"])
def test_blank_variables(name: str, blank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is set but blank is an error that names it."""
    monkeypatch.setenv("CREDUSE_API_KEY", KEY)
    monkeypatch.setenv(name, blank)
    with pytest.raises(ValueError, match=name):
        find()


def test_blank_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    """A blank key is an error, even where the environment has a key."""
    monkeypatch.setenv("CREDUSE_API_KEY", KEY)
    with pytest.raises(ValueError, match="is blank"):
        find("")


def test_allow_http_from_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment can allow plain http."""
    monkeypatch.setenv("CREDUSE_ALLOW_HTTP", "1")
    monkeypatch.setenv("CREDUSE_BASE_URL", "http://example.com")
    assert find(KEY).base_url == "http://example.com"
    with pytest.raises(ValueError, match="must be https"):
        find(KEY, allow_http=False)


@pytest.mark.parametrize("value", [None, "", "0"], ids=repr)
def test_http_is_not_allowed(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the value 1 in the environment allows plain http."""
    if value is not None:
        monkeypatch.setenv("CREDUSE_ALLOW_HTTP", value)
    with pytest.raises(ValueError, match="must be https"):
        find(KEY, "http://example.com")
    assert find(KEY, "http://example.com", allow_http=True).base_url == "http://example.com"


@pytest.mark.parametrize("value", ["false", "true", "yes", " 1", "11"], ids=repr)
def test_allow_http_must_be_0_or_1(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any other value in the environment is rejected, unless an argument overrides it."""
    monkeypatch.setenv("CREDUSE_ALLOW_HTTP", value)
    with pytest.raises(
        ValueError, match=rf"^CREDUSE_ALLOW_HTTP must be 1, 0 or empty, not '{value}'$"
    ):
        find(KEY)
    assert find(KEY, allow_http=False).base_url == BASE_URL


def test_protocol_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The protocol does not read the environment."""
    monkeypatch.setenv("CREDUSE_BASE_URL", "https://environment.example")
    monkeypatch.setenv("CREDUSE_ALLOW_HTTP", "1")
    assert CreduseProtocol(KEY).base_url == BASE_URL
    with pytest.raises(ValueError, match="must be https"):
        CreduseProtocol(KEY, "http://example.com")


@pytest.mark.parametrize(
    ("text", "seconds"), [("", 30.0), ("5", 5.0), ("0.25", 0.25), ("1000000", 1e6)]
)
def test_timeout_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, text: str, seconds: float
) -> None:
    """``CREDUSE_TIMEOUT`` is the timeout in seconds, unless one is passed."""
    monkeypatch.setenv("CREDUSE_TIMEOUT", text)
    assert find(KEY, timeout=None).timeout == seconds
    assert find(KEY, timeout=7).timeout == 7


@pytest.mark.parametrize(
    ("text", "said"),
    [
        *(
            (text, f"a number of seconds in plain digits, such as 2.5, not '{text}'$")
            for text in ("1e3", ".5", "nan", " 5", "-1", "5 s", "٣", "1_0")
        ),
        (
            "1" * 21,
            "a number of seconds in plain digits, such as 2.5, not '11111111111111111111'…$",
        ),
        ("0.0", "above 0 and at most 1,000,000 seconds, not 0.0"),
        ("1000001", "above 0 and at most 1,000,000 seconds, not 1000001.0"),
    ],
)
def test_wrong_timeout_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    """Another value of ``CREDUSE_TIMEOUT`` is rejected by its name."""
    monkeypatch.setenv("CREDUSE_TIMEOUT", text)
    with pytest.raises(ValueError, match=f"^CREDUSE_TIMEOUT must be {said}"):
        find(KEY, timeout=None)
