"""Take the screenshots of the documentation from a running `make demo`; needs Chromium,
and eight minutes.

make demo && python docs/make_pictures.py --console http://127.0.0.1:PORT/onnxserve &&
make demo-stop

To give the console some data, clients send requests and labels, and a rollout of
another version runs.
"""

import argparse
import math
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests
from playwright.sync_api import Browser, Page, sync_playwright

PICTURES = Path(__file__).parent / "pictures"
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
_BEFORE_SECONDS = 240
_ROLLOUT_SECONDS = 110
_ROLLOUT = "rollout start flights --to models:/flight-delay/{} --steps 10,50,100 --every 60s"


def take(
    page: Page,
    url: str,
    name: str,
    height: int,
    *,
    width: int = 1100,
    example: bool = False,
) -> None:
    """Save the upper part of a page as pictures/NAME.png."""
    page.set_viewport_size({"width": width, "height": height})
    page.goto(url)
    page.wait_for_load_state("load")
    page.wait_for_timeout(1000)
    if name == "requests":
        page.locator("summary").first.click()
    if example:
        page.get_by_role("button", name="Predict").click()
        page.wait_for_timeout(1000)
        page.evaluate("scrollTo(0, 0)")  # the button is below a long form
    page.screenshot(path=PICTURES / f"{name}.png")


def ask(server: str, ended: threading.Event) -> None:
    """Request predictions for single flights at a varying rate, and send the label of
    one flight in eight.
    """
    from projects.flight_delay.data import LABEL, load_flights
    from projects.flight_delay.traffic import request_body

    flights = load_flights().sample(2000, random_state=1)
    bodies = [
        (request_body(flights.iloc[[row]]), bool(flights[LABEL].iloc[row]))
        for row in range(len(flights))
    ]
    session = requests.Session()
    begun = time.monotonic()
    asked = 0
    while not ended.wait(0.02 * (1.4 + math.sin((time.monotonic() - begun) / 40))):
        body, delayed = bodies[asked % len(bodies)]
        asked += 1
        answer = session.post(
            f"{server}/invocations",
            body,
            headers={"Content-Type": "application/json"},
            timeout=30,
        )
        if asked % 8 == 0 and "X-Prediction-Id" in answer.headers:
            label = {"prediction_id": answer.headers["X-Prediction-Id"], "label": delayed}
            session.post(f"{server}/feedback", json=label, timeout=30)


@contextmanager
def at_work(console: str, server: str, version: str) -> Iterator[None]:
    """Run a server with clients and a rollout in its second step."""
    from projects.demo.workspace import DEFAULT_HOME, Workspace

    Workspace(DEFAULT_HOME).use(console.removesuffix("/onnxserve"))
    ended = threading.Event()
    command = [sys.executable, "-m", "mlflow_deploy_plugin.cli"]
    callers = threading.Thread(target=ask, args=(server, ended))
    callers.start()
    controller = subprocess.Popen([*command, "controller"])
    try:
        time.sleep(_BEFORE_SECONDS)
        subprocess.run([*command, *_ROLLOUT.format(version).split()], check=True)
        time.sleep(_ROLLOUT_SECONDS)
        yield
    finally:
        controller.terminate()
        controller.wait()
        ended.set()
        callers.join()


def take_console(browser: Browser, console: str) -> None:
    whole = f"{console}?endpoint=flights"
    page = browser.new_page(device_scale_factor=1.5)
    take(page, whole, "console", 1340)
    page.locator(".monitors").screenshot(path=PICTURES / "console-windows.png")
    take(page, console, "console-overview", 640)
    phone = browser.new_page(device_scale_factor=1.5, color_scheme="dark")
    take(phone, whole, "console-phone", 780, width=375)
    phone.evaluate("document.querySelector('.spans').scrollIntoView()")
    phone.screenshot(path=PICTURES / "console-phone.png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--console",
        required=True,
        help="address of the console, as printed by the demo",
    )
    parser.add_argument(
        "--server",
        default="http://127.0.0.1:8080",
        help="address of the model's server",
    )
    parser.add_argument("--rollout-to", default="1", help="version without the alias champion")
    parser.add_argument(
        "--only-console",
        action="store_true",
        help="do not take the other pictures",
    )
    asked = parser.parse_args()
    PICTURES.mkdir(exist_ok=True)
    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(
            executable_path="/usr/bin/chromium",
            args=["--no-sandbox", "--disable-gpu"],
        )
        if (
            not asked.only_console
        ):  # first, while the rollout has not left an archived version in service
            page = browser.new_page()
            take(page, f"{asked.server}/", "try", 900, example=True)
            take(page, (ROOT / ".demo" / "reports" / "summer.html").as_uri(), "report", 1000)
        with at_work(asked.console, asked.server, asked.rollout_to):
            take_console(browser, asked.console)
            if not asked.only_console:
                take(page, f"{asked.server}/requests", "requests", 900)
        browser.close()


if __name__ == "__main__":
    main()
