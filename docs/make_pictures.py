"""Take the pictures of the documentation from what `make demo` has left running; needs Chromium.

make demo && python docs/make_pictures.py --console http://127.0.0.1:PORT/onnxserve && make demo-stop
"""

import argparse
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

PICTURES = Path(__file__).parent / "pictures"
ROOT = Path(__file__).parents[1]


def take(page: Page, url: str, name: str, height: int, *, example: bool = False) -> None:
    """Save the upper part of a page as pictures/NAME.png."""
    page.set_viewport_size({"width": 1100, "height": height})
    page.goto(url)
    page.wait_for_load_state("networkidle")
    if example:
        page.get_by_role("button", name="Predict").click()
        page.wait_for_timeout(1000)
    page.screenshot(path=PICTURES / f"{name}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--console", required=True, help="address of the console, which the demo prints")
    parser.add_argument("--server", default="http://127.0.0.1:8080", help="address of the model's server")
    asked = parser.parse_args()
    PICTURES.mkdir(exist_ok=True)
    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        take(page, asked.console, "console", 900)
        take(page, f"{asked.server}/", "try", 900, example=True)
        take(page, (ROOT / ".demo" / "reports" / "summer.html").as_uri(), "report", 1000)
        browser.close()


if __name__ == "__main__":
    main()
