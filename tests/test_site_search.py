"""A reader searches the documentation site in a browser."""

import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, urlsplit

import pytest
from playwright.sync_api import expect

from tests.support.browser import NEEDS_CHROMIUM, chromium
from tests.support.guides import ROOT

pytestmark = [*NEEDS_CHROMIUM, pytest.mark.long]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Return the URL of the site, built from the pages of this checkout."""
    folder = tmp_path_factory.mktemp("site")
    command = [f"{sys.prefix}/bin/mkdocs", "build", "--strict", "--site-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


def search(browser, site, query):
    """Return the links of the results, the best first. Their parameter `h` has the
    words that a page contains.
    """
    page = browser.new_page()
    page.goto(f"{site}/index.html?q={quote(query)}")
    links = page.locator("a.md-search-result__link")
    expect(links.first).to_be_attached()
    return [str(link.get_attribute("href")) for link in links.all()]


def test_error_message_is_found(browser, site):
    links = search(browser, site, "the ZipMap node has no classes")

    assert urlsplit(links[0]).path == "/errors.html"
    assert "zipmap-node--has-no-classes" in " ".join(links)


ANSWERS = """\
deploy with a canary → rollout.html
an environment with MLflow 2 → registered.html#an-environment-with-mlflow-2
threshold of a classifier → wrap.html#the-threshold-of-a-classifier
two teams on one server → operate.html#two-teams-on-one-server
Windows laptops → operate.html#on-a-windows-laptop
TargetEncoder → wrap.html#supported-steps
How to let deployed classifier return probabilities? → wrap.html#the-threshold-of-a-classifier
Could one endpoint provide multiple models? → deployments.html#several-models-behind-one-endpoint
request/response logging → log.html
shadow traffic → rollout.html#shadows
old models trained with scikit-learn 1.2 → registered.html#models-saved-with-older-packages
turn off transitioning model stages in the UI → gate.html
rollback to previous version → rollout.html#roll-back
opportunistic batching → server-settings.html#dynamic-batching
how to do request authentication for an inference service? → server-settings.html#api-keys
how to monitor data drift of a served model → monitor.html
filter unneeded columns from model serving request → wrap.html#columns-that-no-step-reads
integer column with missing values → serve.html#bad-input
can I deploy it on an offline machine? → export.html
running MLflow behind a reverse proxy → console.html#logins
I want to add user authentication in MLflow → console.html#logins
support for multi-tenancy → operate.html#two-teams-on-one-server
batch predictions on a csv file → deployments.html#batches
accepting and rejecting transition requests → console.html#requests-and-approvals
retrain automatically when drift is detected → retrain.html#what-starts-a-retraining
how to deploy an mlflow model to kubernetes → kubernetes.html
reject weird values → observe.html#guards
all models of mlflow in a single process → registry-server.html
who signed off a version → gate.html#approvals
umlauts in column names → serve.html#bad-input
"""
"""Questions in the words of issues of MLflow, KServe, Seldon, BentoML and sklearn-onnx,
each with a page or a section that answers it.
"""


@pytest.mark.parametrize(
    ("question", "answer"), [line.split(" → ") for line in ANSWERS.splitlines()]
)
def test_question_is_answered_in_three_pages(browser, site, question, answer):
    links = [urlsplit(link) for link in search(browser, site, question)]
    found = [f"{link.path}#{link.fragment}".removeprefix("/") for link in links]
    page, _, section = answer.partition("#")
    first_pages = list(dict.fromkeys(link.partition("#")[0] for link in found))[:3]

    assert page in first_pages
    assert f"{page}#{section}" in [link for link in found if link.startswith(f"{page}#")][:4]


def test_site_follows_the_system_after_the_first_visit(browser, site):
    context = browser.new_context(color_scheme="light", viewport={"width": 1400, "height": 900})
    page = context.new_page()
    for system, scheme in (("light", "default"), ("dark", "slate"), ("light", "default")):
        page.emulate_media(color_scheme=system)
        page.goto(f"{site}/index.html")
        expect(page.locator("body")).to_have_attribute("data-md-color-scheme", scheme)
    cut = page.evaluate(
        """() => [...document.querySelectorAll(".language-sh code")]
        .filter((code) => code.scrollWidth > code.clientWidth).map((code) => code.innerText)"""
    )
    assert cut == []
    context.close()
