"""A desktop program: the server of `onnxserve serve` for one version, and its page in a
window of the system's browser. PyInstaller runs this file; `desktop.py` builds the
program.
"""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import webbrowser
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import urlopen

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.serve.embed import local_server
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel

MODEL = "model"
FACTS = "program.json"
"""The MLmodel folder of a program, and the file with the name of its version, both next
to its libraries.
"""
BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "microsoft-edge",
    "brave-browser",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
)
"""The browsers that open a window of one page (`--app`)."""


def main(folder: Path, arguments: list[str]) -> None:
    """Serve the version in `folder` on this machine until its window is closed, or run
    a check of the export without a display.
    """
    facts = json.loads((folder / FACTS).read_text())
    name = facts["name"]
    version = facts["version"]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        match arguments:
            case ["--check", rows, outputs]:
                model = OnnxModel.load(folder / MODEL)
                # The export wrote the file.
                feeds = model.schema.from_columns(pickle.loads(Path(rows).read_bytes()))
                Path(outputs).write_bytes(pickle.dumps(model.run(feeds)))
                with local_server(folder / MODEL, name, version) as url:
                    urlopen(url).close()
            case []:
                with local_server(folder / MODEL, name, version) as url:
                    show_page(url)
            case ["--port", port]:
                with local_server(folder / MODEL, name, version, port) as url:
                    show_page(url)
            case _:
                sys.exit("usage: the program opens a window; --port PORT sets its server's port")
    except KeyboardInterrupt:
        return
    except (OnnxserveError, OSError) as error:
        sys.exit(f"Error: {error}")


def show_page(url: str) -> None:
    """Show the page until its window is closed. Without a browser of `BROWSERS`, open a
    tab of the standard browser, and wait until the program is interrupted.
    """
    sys.stdout.write(f"{url} (Ctrl+C ends the program)\n")
    sys.stdout.flush()
    browsers = [path for path in map(shutil.which, BROWSERS) if path]
    if not browsers:
        webbrowser.open(url)
        threading.Event().wait()
        return
    # With a profile of its own, the browser runs until the window is closed.
    with TemporaryDirectory(prefix="onnxserve-window-", ignore_cleanup_errors=True) as profile:
        window = [browsers[0], f"--app={url}", f"--user-data-dir={profile}", "--no-first-run"]
        with subprocess.Popen(window, stderr=subprocess.DEVNULL) as browser:
            try:
                browser.wait()
            finally:
                browser.terminate()


if __name__ == "__main__":
    # PyInstaller's libraries are for this program, not for the browser that it starts.
    os.environ["LD_LIBRARY_PATH"] = os.environ.get("LD_LIBRARY_PATH_ORIG", "")
    main(Path(sys._MEIPASS), sys.argv[1:])  # type: ignore[attr-defined] # the folder of the files, from PyInstaller
