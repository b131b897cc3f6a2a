"""The promise of the project: pressing "Transition to → Production" in MLflow's UI is the deployment."""

import shutil
import threading
import time
from dataclasses import dataclass

import pytest
import requests
from mlflow.deployments import get_deploy_client
from playwright.sync_api import Page, sync_playwright

from support.mlflow_server import MlflowServer
from support.waiting import wait_until

CHROMIUM = shutil.which("chromium")


@dataclass(frozen=True)
class Answer:
    at: float
    status: int
    version: str
    value: float


class Traffic(threading.Thread):
    """One client that asks again and again until it is told to stop."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = f"{url}/invocations"
        self._ended = threading.Event()
        self.answers: list[Answer] = []

    def run(self) -> None:
        session = requests.Session()
        while not self._ended.is_set():
            response = session.post(self._url, json={"inputs": [[10.0]]}, timeout=10)
            value = response.json()["predictions"]["y"][0][0] if response.ok else float("nan")
            version = response.headers.get("X-Model-Version", "")
            self.answers.append(Answer(time.monotonic(), response.status_code, version, value))
            self._ended.wait(0.005)

    def stop(self) -> list[Answer]:
        self._ended.set()
        self.join()
        return self.answers


def promote_in_the_ui(page: Page, mlflow_url: str, name: str, version: str) -> float:
    """Presses what a person presses; gives the time of the last click."""
    page.goto(f"{mlflow_url}/#/models/{name}/versions/{version}")
    page.get_by_role("switch").first.click()  # "New model registry UI"
    page.get_by_role("button", name="Disable").click()
    page.reload()
    page.get_by_text("None", exact=True).first.click()
    page.get_by_text("Transition to").filter(has_text="Production").last.click()
    page.get_by_role("button", name="OK").click()
    return time.monotonic()


@pytest.mark.chromium
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (apt-get install chromium)")
def test_a_promotion_in_the_ui_is_served_within_five_seconds_and_no_request_fails(
    mlflow_server: MlflowServer, two_versions: str
) -> None:
    client = get_deploy_client("onnxserve")
    deployment = client.create_deployment(
        "promoted", f"models:/{two_versions}/Production", config={"server.workers": 2}
    )
    traffic = Traffic(deployment["url"])
    try:
        traffic.start()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=CHROMIUM,
                args=[
                    "--no-sandbox",
                    "--disable-background-networking",
                    "--disable-component-update",
                    "--disable-sync",
                ],
            )
            clicked = promote_in_the_ui(browser.new_page(), mlflow_server.url, two_versions, "2")
            wait_until(lambda: traffic.answers[-1].version == "2", 20, "version 2 answers")
            seen = len(traffic.answers)  # an answer of the old version after the first of the new one would be seen
            wait_until(lambda: len(traffic.answers) > seen + 100, 20, "a hundred answers after it")
            browser.close()
        answers = traffic.stop()
    finally:
        traffic.stop()
        client.delete_deployment("promoted")

    assert {answer.status for answer in answers} == {200}
    assert {(answer.version, answer.value) for answer in answers} == {("1", 11.0), ("2", 12.0)}
    last_of_the_old = max(answer.at for answer in answers if answer.version == "1")
    assert last_of_the_old - clicked < 5
