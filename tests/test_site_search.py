"""A reader searches the documentation site in a browser."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from playwright.sync_api import Browser, expect

from tests.support.browser import NEEDS_CHROMIUM, chromium
from tests.support.guides import ROOT

pytestmark = [*NEEDS_CHROMIUM, pytest.mark.long]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the URL of the site, built from the pages of this checkout."""
    folder = tmp_path_factory.mktemp("site")
    command = [f"{sys.prefix}/bin/mkdocs", "build", "--strict", "--site-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0),
        partial(SimpleHTTPRequestHandler, directory=folder),
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


def search(browser: Browser, site: str, query: str) -> list[str]:
    """Return the links of the results, the best first. Their parameter `h` has the
    words that a page contains.
    """
    page = browser.new_page()
    page.goto(f"{site}/index.html?q={quote(query)}")
    links = page.locator("a.md-search-result__link")
    expect(links.first).to_be_attached()
    return [str(link.get_attribute("href")) for link in links.all()]


@pytest.mark.parametrize(
    ("query", "words"),
    [("what is a gate", {"gate"}), ("how do I roll back a version?", {"roll", "back", "version?"})],
)
def test_stop_words_of_a_query_are_ignored(
    browser: Browser,
    site: str,
    query: str,
    words: set[str],
) -> None:
    matched = set(
        chain.from_iterable(
            parse_qs(urlsplit(link).query).get("h", []) for link in search(browser, site, query)
        )
    )

    assert set(chain.from_iterable(phrase.split() for phrase in matched)) - words == set()


def test_a_query_of_stop_words_has_results(browser: Browser, site: str) -> None:
    assert search(browser, site, "the") != []


def test_the_message_of_an_error_is_found_by_its_words(browser: Browser, site: str) -> None:
    links = search(browser, site, "the ZipMap node has no classes")

    assert urlsplit(links[0]).path == "/errors.html"
    assert "zipmap-node--has-no-classes" in " ".join(links)


def test_a_canary_is_found_in_the_guide_of_rollouts(browser: Browser, site: str) -> None:
    assert "/rollout.html" in {urlsplit(link).path for link in search(browser, site, "canary")}
