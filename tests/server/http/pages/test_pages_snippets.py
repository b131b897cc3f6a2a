"""The code of the docs page, run as it is."""

import html
import re
import shutil
import subprocess
import sys
from typing import Any

import pytest
import requests


def shown(url: str, endpoint: str) -> list[str]:
    """Return the snippets of an endpoint's docs page."""
    page = requests.get(f"{url}/endpoints/{endpoint}/docs", timeout=10).text
    ask = page[page.index("<h2>Ask it</h2>") : page.index("<h2>Routes</h2>")]
    return [html.unescape(code) for code in re.findall(r"<code>(.*?)</code>", ask, re.DOTALL)]


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("endpoint", "answer"), [("flights", "yes"), ("digits", "1"), ("hostile", "script")])
def test_every_snippet_runs_and_is_answered(pages_server: Any, endpoint: str, answer: str) -> None:
    curl, python, triton = shown(pages_server.url, endpoint)
    assert answer in run(sys.executable, "-c", python)
    if shutil.which("curl"):
        assert answer in run("sh", "-c", curl)
    pytest.importorskip("tritonclient.http")
    assert answer in run(sys.executable, "-c", triton)
