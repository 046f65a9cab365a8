"""Crawls of a real web server: polite, capped, and every URL accounted for."""

import asyncio
import ipaddress
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import pytest
from ingest_cases import context_for
from serving import Site, a_site

from textmill.contracts.documents import CrawlManifest, CrawlOutcome
from textmill.contracts.jobs import CrawlJob
from textmill.errors import Cancelled, DependencyDown, JobFailed, Transient
from textmill.store import MemoryStore
from textmill_ingest.crawl import Politeness, crawl
from textmill_ingest.documents import get_document
from textmill_ingest.fetch import Page
from textmill_ingest.worker import keep_page, run_crawl

HERE = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
QUICK = Politeness(delay_s=0, retry_delay_s=0, timeout_s=60, max_page_bytes=50_000, allow_networks=HERE)


@pytest.fixture
def site() -> Iterator[Site]:
    with a_site() as site:
        yield site


def crawled(urls: list[str], politeness: Politeness = QUICK) -> dict[str, CrawlOutcome]:
    outcomes = asyncio.run(crawl(urls, politeness, lambda url, page: "doc_x", lambda done: None))
    assert [outcome.url for outcome in outcomes] == urls
    return {outcome.url: outcome for outcome in outcomes}


def test_numbered_gaps_are_outcomes_not_failures(site):
    store = MemoryStore()
    urls = [site.put(f"/{n}.html", f"<p>Hexagram {n} has six lines.</p>".encode()) for n in (1, 2, 4)]
    urls.insert(2, site.url("/3.html"))
    output = run_crawl(CrawlJob(urls=tuple(urls)), context_for(store), QUICK)
    manifest = CrawlManifest.model_validate(output.manifest)
    assert [outcome.reason for outcome in manifest.outcomes] == [None, None, "http_404", None]
    document = get_document(store, manifest.document_ids[2])
    assert (document.name, document.media_type, document.source_url) == (urls[3], "text/html", urls[3])
    assert store.get(document.raw_key) == b"<p>Hexagram 4 has six lines.</p>"


def test_robots_txt_is_obeyed_and_read_once(site):
    site.put("/robots.txt", b"User-agent: textmill\nDisallow: /private\nAllow: /private/open\n", "text/plain")
    urls = [site.put(path, b"x") for path in ("/private/a", "/private/open", "/b")]
    found = crawled(urls)
    assert [found[url].reason for url in urls] == ["robots_txt", None, None]
    assert site.paths.count("/robots.txt") == 1
    assert "/private/a" not in site.paths


def test_an_unreachable_robots_txt_closes_the_host(site):
    site.put("/robots.txt", b"", status=503, **{"Retry-After": "0"})
    url = site.put("/a", b"x")
    assert crawled([url])[url].reason == "robots_txt_unreachable"
    assert "/a" not in site.paths


def test_one_request_at_a_time_with_a_pause(site):
    urls = [site.put(f"/{n}", b"x") for n in range(4)]
    crawled(urls, Politeness(delay_s=0.1, allow_networks=HERE))
    times = [at for at, _ in site.seen]
    assert set(site.most_at_once.values()) == {1}
    assert all(later - earlier > 0.09 for earlier, later in pairwise(times))


def test_a_host_reached_through_redirects_too_gets_one_request_at_a_time(site):
    site.work_s = 0.02
    by_name = [f"http://localhost:{site.port}/from/{n}" for n in range(5)]
    for n in range(5):
        site.put(f"/from/{n}", b"", status=302, Location=site.put(f"/to/{n}", b"x"))
    found = crawled([url for n in range(5) for url in (by_name[n], site.put(f"/own/{n}", b"x"))])
    assert {outcome.reason for outcome in found.values()} == {None}
    assert site.most_at_once == {f"127.0.0.1:{site.port}": 1, f"localhost:{site.port}": 1}


def test_redirects_are_followed_and_each_hop_is_checked(site):
    target = site.put("/target", b"x")
    good = site.put("/good", b"", status=302, Location="/target")
    private = site.put("/private", b"", status=302, Location="http://169.254.169.254/latest/meta-data")
    loop = site.put("/loop", b"", status=301, Location="/loop")
    scheme = site.put("/file", b"", status=302, Location="file:///etc/passwd")
    found = crawled([good, private, loop, scheme])
    assert (found[good].final_url, found[good].document_id) == (target, "doc_x")
    assert found[private].reason == "address_refused"
    assert found[loop].reason == "too_many_redirects"
    assert found[scheme].reason == "bad_url"


def test_a_redirect_into_what_robots_txt_closes_is_refused(site):
    site.put("/robots.txt", b"User-agent: *\nDisallow: /closed\n", "text/plain")
    site.put("/closed", b"x")
    url = site.put("/open", b"", status=302, Location="/closed")
    assert crawled([url])[url].reason == "robots_txt"


def test_without_leave_nothing_on_loopback_is_dialled(site):
    urls = [site.url("/", host) for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]")]
    found = crawled(urls, Politeness(delay_s=0))
    assert {found[url].reason for url in urls} == {"address_refused"}
    assert site.seen == []


def test_size_and_time_are_capped(site):
    large = site.put("/large", b"x" * 50_001)
    assert crawled([large])[large].reason == "too_large"
    slow = Politeness(delay_s=0, retry_delay_s=0, timeout_s=0.2, allow_networks=HERE)
    with _dripping() as url:
        assert crawled([url], slow)[url].reason in ("timeout", "robots_txt_unreachable")


@pytest.mark.parametrize(
    "url", ["ftp://example.com/a", "http://", "http://a:b@example.com/", "no url", "http://x:99999/"]
)
def test_bad_urls_are_outcomes(url):
    assert crawled([url])[url].reason == "bad_url"


def test_a_password_in_a_url_is_not_repeated():
    url = "http://user:secret@example.com/"
    outcome = crawled([url])[url]
    assert "secret" not in f"{outcome.detail}{outcome.final_url}"


def test_unsupported_and_undecodable_pages_say_so(site):
    store = MemoryStore()
    image = site.put("/a.png", b"\x89PNG", "image/png")
    broken = site.put("/b.txt", b"\xff\xff\xff\x00", "text/plain")
    fine = site.put("/c.txt", b"fine", "text/plain; charset=nonsense")
    output = run_crawl(CrawlJob(urls=(image, broken, fine)), context_for(store), QUICK)
    assert [o["reason"] for o in output.manifest["outcomes"]] == ["unsupported_media", "undecodable_text", None]


def test_a_page_s_charset_is_believed_unless_it_is_utf8():
    store = MemoryStore()
    for body, charset, name in [
        ("é".encode("cp1252"), "windows-1252", "cp1252"),
        ("é".encode(), "iso-8859-1", "utf-8"),
        ("乾为天。".encode("gbk"), "gb2312", "gb18030"),
    ]:
        document_id = keep_page(
            store, f"http://x/{name}", Page("http://x", 200, f"text/plain; charset={charset}", body)
        )
        assert get_document(store, document_id).encoding.name == name


def test_a_crawl_without_one_document_fails_and_says_why(site):
    with pytest.raises(JobFailed, match=r"none of 2 URL\(s\).*http_404 \(2\)"):
        run_crawl(CrawlJob(urls=(site.url("/1"), site.url("/2"))), context_for(MemoryStore()), QUICK)


def test_a_dead_host_is_worth_another_try():
    with a_site() as gone:
        url = gone.url("/1")
    with pytest.raises(Transient, match="robots_txt_unreachable"):
        run_crawl(CrawlJob(urls=(url,)), context_for(MemoryStore()), QUICK)


def test_a_store_that_goes_down_stops_the_crawl(site):
    class Down(MemoryStore):
        def put_stream(self, key: str, chunks: object) -> int:
            raise DependencyDown("down")

    with pytest.raises(DependencyDown):
        run_crawl(CrawlJob(urls=(site.put("/1", b"x"),)), context_for(Down()), QUICK)


def test_a_cancelled_crawl_ends_soon(site):
    context = context_for(MemoryStore())
    urls = tuple(site.put(f"/{n}", b"x") for n in range(50))
    threading.Timer(0.3, lambda: context.stop(Cancelled("cancelled"))).start()
    with pytest.raises(Cancelled):
        run_crawl(CrawlJob(urls=urls), context, Politeness(delay_s=5, allow_networks=HERE))


@contextmanager
def _dripping() -> Iterator[str]:
    """A server that sends a byte now and then and never ends."""

    class Drip(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                while True:
                    self.wfile.write(b"x")
                    time.sleep(0.05)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Drip)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/slow"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
