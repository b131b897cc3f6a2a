"""Headless Chromium for tests of pages. The tests are skipped if Chromium is not
installed.
"""

import shutil
from contextlib import contextmanager

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright

CHROMIUM = shutil.which("chromium")
NEEDS_CHROMIUM = [
    pytest.mark.chromium,
    pytest.mark.skipif(
        CHROMIUM is None, reason="no chromium on this machine (apt-get install chromium)"
    ),
]
"""The marks of a module whose tests look at pages."""

# If other processes use the core, drawing a page may take longer than the default of
# five seconds.
expect.set_options(timeout=60_000)


@contextmanager
def chromium(*options):
    """Run a browser with these options in addition to its usual options."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", *options]
        )
        yield browser
        browser.close()


def accessibility_findings(page):
    """Return the violations that axe-core reports for the page, on a phone with the
    dark scheme or on a desktop.

    The rules are WCAG 2.2 A and AA, and the good practice of axe.
    """
    findings = []
    places = ((360, "dark"), (1280, "light"))
    for width, scheme in places:
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        options = {"resultTypes": ["violations"], "rules": {"target-size": {"enabled": True}}}
        for violation in Axe().run(page, options=options).response["violations"]:
            findings += [
                f"{violation['id']} ({scheme}): {node['html'][:200]}" for node in violation["nodes"]
            ]
    return findings
