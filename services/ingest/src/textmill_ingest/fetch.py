"""Fetches one page: redirects by hand, every hop checked, never more bytes or seconds than allowed.

Knows nothing of robots.txt, of politeness or of what becomes of the page.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import urljoin, urlsplit

import aiohttp

from textmill_ingest.addresses import AddressRefused, GuardedResolver, Network, check_literal

USER_AGENT = "textmill/0.1 (crawler of given pages; obeys robots.txt)"
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 5
BeforeHop = Callable[[str], Awaitable[None]]
"""Called with each URL before it is asked for; may wait, may raise ``NoPage``."""


@dataclass(frozen=True)
class Page:
    url: str
    status: int
    content_type: str
    body: bytes


class NoPage(Exception):
    """There is no page, and ``reason`` (a word in snake case) says why.

    ``again_after_s`` is the least time to wait before another try, None where that can't help.
    """

    def __init__(
        self, reason: str, detail: str, *, url: str = "", status: int | None = None, again_after_s: float | None = None
    ) -> None:
        super().__init__(detail)
        self.reason = reason
        self.url = url
        self.status = status
        self.again_after_s = again_after_s


class Fetcher:
    """An HTTP client that dials only addresses it may. Use as an async context manager."""

    def __init__(self, allowed: Sequence[Network], max_bytes: int, timeout_s: float) -> None:
        self._allowed = allowed
        self._max_bytes = max_bytes
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, connect=min(10.0, timeout_s))

    async def __aenter__(self) -> Self:
        # A connection is never kept: the next request resolves and checks anew.
        connector = aiohttp.TCPConnector(
            resolver=GuardedResolver(self._allowed), use_dns_cache=False, force_close=True, limit=0
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=self._timeout,
            headers={"User-Agent": USER_AGENT, "Accept": "text/html, text/*;q=0.9, */*;q=0.1"},
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._session.close()

    async def get(self, url: str, before_hop: BeforeHop) -> Page:
        """Follow up to five redirects.

        Raises:
            NoPage: for whatever reason.
        """
        for _ in range(_MAX_REDIRECTS + 1):
            self._check(url)
            await before_hop(url)
            page = await self._once(url)
            if isinstance(page, Page):
                return page
            url = urljoin(url, page)
        raise NoPage("too_many_redirects", f"more than {_MAX_REDIRECTS} redirects", url=url)

    def _check(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            host = parts.hostname or ""
            _ = parts.port
        except ValueError as exc:
            raise NoPage("bad_url", f"no URL: {exc}", url=url) from exc
        if parts.scheme not in ("http", "https") or not host:
            raise NoPage("bad_url", "only http:// and https:// URLs with a host are fetched", url=url)
        if parts.username is not None or parts.password is not None:
            raise NoPage("bad_url", "the URL carries a user name or password", url=parts._replace(netloc=host).geturl())
        try:
            check_literal(host, self._allowed)
        except AddressRefused as exc:
            raise NoPage("address_refused", str(exc), url=url) from exc

    async def _once(self, url: str) -> Page | str:
        """The page, or where it says to go instead."""
        try:
            async with self._session.get(url, allow_redirects=False) as response:
                target = response.headers.get("Location")
                if response.status in _REDIRECTS and target:
                    return target
                if response.status != 200:
                    raise _refused(url, response.status, response.headers.get("Retry-After", ""))
                body = await self._body(response, url)
                return Page(url, response.status, response.headers.get("Content-Type", ""), body)
        except AddressRefused as exc:
            raise NoPage("address_refused", str(exc), url=url) from exc
        except TimeoutError as exc:
            raise NoPage("timeout", f"not done after {self._timeout.total:g} s", url=url, again_after_s=0.0) from exc
        except (aiohttp.InvalidURL, ValueError) as exc:
            raise NoPage("bad_url", f"no URL that can be fetched: {exc}", url=url) from exc
        except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError) as exc:
            raise NoPage("connection_failed", f"{type(exc).__name__}: {exc}", url=url, again_after_s=0.0) from exc

    async def _body(self, response: aiohttp.ClientResponse, url: str) -> bytes:
        """Counted after decompression, so that a small answer can't swell beyond the cap."""
        body = bytearray()
        async for chunk in response.content.iter_chunked(1 << 16):
            body += chunk
            if len(body) > self._max_bytes:
                raise NoPage("too_large", f"more than {self._max_bytes} bytes", url=url, status=response.status)
        return bytes(body)


def _refused(url: str, status: int, retry_after: str) -> NoPage:
    temporary = status == 429 or status >= 500
    wait_s = min(60.0, float(retry_after)) if retry_after.isdigit() else 0.0
    again_after_s = wait_s if temporary else None
    return NoPage(
        f"http_{status}", f"the server answered {status}", url=url, status=status, again_after_s=again_after_s
    )
