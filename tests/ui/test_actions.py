"""A button, its process, and the page that follows it."""

import time
from typing import Any

import pytest

from tests.support.console import PAGE, form, open_page
from tests.support.waiting import wait_until


def test_a_button_starts_a_process_and_the_page_tells_how_it_went(
    mlflow_app: Any, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser, _, token = open_page(mlflow_app)
    begun = time.monotonic()
    answer = browser.post(f"{PAGE}/act", data=form(endpoint, token), headers={"Origin": "http://localhost"})
    assert time.monotonic() - begun < 30  # the process goes on without the answer
    assert answer.status_code == 303
    html = wait_until(lambda: ended(browser, answer.headers["Location"]), 90, "the job has ended")
    assert 'role="alert"' in html
    # nobody listens where the test's app says it is: the one thing that this process can do is to say so
    assert f"Not done: change the traffic of {endpoint} to champion 100. this MLflow server reaches itself" in html


def ended(browser: Any, path: str) -> str:
    html: str = browser.get(path).get_data(as_text=True)
    return "" if "Under way" in html else html
