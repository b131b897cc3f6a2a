"""Chromium without a window, in which tests look at pages; they skip where it is not installed."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

CHROMIUM = shutil.which("chromium")
NEEDS_CHROMIUM = [
    pytest.mark.chromium,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (apt-get install chromium)"),
]
"""The marks of a module whose tests look at pages."""

expect.set_options(timeout=60_000)  # on a core that others use too, five seconds are over before a page is drawn


@contextmanager
def chromium(*options: str) -> Iterator[Browser]:
    """Run a browser with these options beside its usual ones."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *options])
        yield browser
        browser.close()
