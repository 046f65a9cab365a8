"""Fetches the given URLs politely: robots.txt, one request at a time to a host, with a pause in between.

Every URL ends in one outcome. Follows no links. Knows nothing of stores: ``keep`` takes the pages.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from protego import Protego

from textmill.contracts.documents import CrawlOutcome
from textmill.errors import BadRequest, Conflict
from textmill_ingest.addresses import Network
from textmill_ingest.fetch import USER_AGENT, BeforeHop, Fetcher, NoPage, Page

_HOSTS_AT_ONCE = 8
_TRIES = 3
_LONGEST_DELAY_S = 30.0
_ROBOTS_BYTES = 512 * 1024
"""How much of a robots.txt is read; RFC 9309 asks for at least 500 KiB."""
Keep = Callable[[str, Page], str]
"""Keeps the page fetched for a URL; returns the document's id. Blocks; may raise ``BadRequest``."""


@dataclass(frozen=True)
class Politeness:
    """``delay_s`` between two requests to a host, ``retry_delay_s`` before the second try at a page."""

    delay_s: float = 1.0
    retry_delay_s: float = 2.0
    timeout_s: float = 30.0
    max_page_bytes: int = 8 * 1024 * 1024
    allow_networks: Sequence[Network] = ()


async def crawl(
    urls: Sequence[str], politeness: Politeness, keep: Keep, settled: Callable[[int], None]
) -> list[CrawlOutcome]:
    """One outcome for each URL, in their order. ``settled`` hears how many are done. A repeated URL is fetched once."""
    outcomes: dict[str, CrawlOutcome] = {}
    hosts = asyncio.Semaphore(_HOSTS_AT_ONCE)

    async def one_host(own: list[str]) -> None:
        async with hosts:
            for url in own:
                outcomes[url] = await crawler.outcome(url)
                settled(len(outcomes))

    async with Fetcher(politeness.allow_networks, politeness.max_page_bytes, politeness.timeout_s) as fetcher:
        crawler = _Crawler(fetcher, politeness, keep)
        async with asyncio.TaskGroup() as group:
            for own in _by_host(urls):
                group.create_task(one_host(own))
    return [outcomes[url] for url in urls]


def _by_host(urls: Iterable[str]) -> Iterable[list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for url in dict.fromkeys(urls):
        groups[_host(url)].append(url)
    return groups.values()


def _host(url: str) -> str:
    try:
        return urlsplit(url).netloc.rpartition("@")[2].lower()
    except ValueError:
        return ""


@dataclass
class _Host:
    """``turn`` is held for the length of one request."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    free_at: float = 0.0
    rules: Protego | None = None
    rules_turn: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass
class _Crawler:
    fetcher: Fetcher
    politeness: Politeness
    keep: Keep
    _hosts: dict[str, _Host] = field(default_factory=lambda: defaultdict(_Host))

    async def outcome(self, url: str) -> CrawlOutcome:
        for attempt in range(1, _TRIES + 1):
            try:
                page = await self._fetch(url)
                document_id = await asyncio.to_thread(self.keep, url, page)
                return CrawlOutcome(url=url, final_url=page.url, status=page.status, document_id=document_id)
            except NoPage as exc:
                if exc.again_after_s is None or attempt == _TRIES:
                    return CrawlOutcome(
                        url=url, final_url=exc.url or None, status=exc.status, reason=exc.reason, detail=str(exc)
                    )
                await asyncio.sleep(max(exc.again_after_s, self.politeness.retry_delay_s * attempt))
            except (BadRequest, Conflict) as exc:
                return CrawlOutcome(url=url, final_url=page.url, status=page.status, reason=exc.code, detail=str(exc))
        raise AssertionError("the last try returns")

    async def _fetch(self, url: str) -> Page:
        async def allowed(hop: str) -> None:
            rules = await self._rules(hop)
            if not rules.can_fetch(hop, USER_AGENT):
                raise NoPage("robots_txt", "the host's robots.txt asks crawlers not to fetch this", url=hop)

        return await self._politely(url, allowed)

    async def _politely(self, url: str, allowed: BeforeHop) -> Page:
        """One request at a time to each host on the way, and the host's pause after each."""
        held: list[_Host] = []

        async def take_turn(hop: str) -> None:
            _let_go(held, self._delay_s)
            await allowed(hop)
            host = self._hosts[_host(hop)]
            await host.turn.acquire()
            held.append(host)
            await asyncio.sleep(max(0.0, host.free_at - time.monotonic()))

        try:
            return await self.fetcher.get(url, take_turn)
        finally:
            _let_go(held, self._delay_s)

    def _delay_s(self, host: _Host) -> float:
        asked = host.rules.crawl_delay(USER_AGENT) if host.rules else None
        return min(_LONGEST_DELAY_S, max(self.politeness.delay_s, asked or 0.0))

    async def _rules(self, url: str) -> Protego:
        """The host's robots.txt, read once. RFC 9309: none means all is allowed, unreachable means nothing is."""
        host = self._hosts[_host(url)]
        async with host.rules_turn:
            if host.rules is None:
                parts = urlsplit(url)
                try:
                    page = await self._politely(f"{parts.scheme}://{_host(url)}/robots.txt", _anything)
                    host.rules = Protego.parse(page.body[:_ROBOTS_BYTES].decode("utf-8", "replace"))
                except NoPage as exc:
                    if exc.status is None or not 400 <= exc.status < 500 or exc.status == 429:
                        raise NoPage(
                            exc.reason if exc.reason in ("address_refused", "bad_url") else "robots_txt_unreachable",
                            f"robots.txt: {exc}", url=url, status=exc.status, again_after_s=exc.again_after_s,
                        ) from exc  # fmt: skip
                    host.rules = Protego.parse("")
            return host.rules


async def _anything(hop: str) -> None:
    """robots.txt itself needs no leave."""


def _let_go(held: list[_Host], delay_s: Callable[[_Host], float]) -> None:
    while held:
        host = held.pop()
        host.free_at = time.monotonic() + delay_s(host)
        host.turn.release()
