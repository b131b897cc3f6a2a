"""README and the guides as scripts: the tests extract the examples and commands from
the pages and run them.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.support.refusals import mentions
from tests.support.waiting import free_port, wait_until

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BY_HAND = (ROOT / "docs" / "by-hand.md").read_text()
_NUMBER = re.compile(r"[\d.,]*\d")
_FOREIGN = ("ONNXSERVE_", "MLFLOW_", "PYTHON", "UV_", "VIRTUAL_ENV")


def section(heading):
    """Return the text below `## heading` of README."""
    (text,) = re.findall(
        rf"^## {heading}\n(.*?)(?=^## |\Z)", README, flags=re.DOTALL | re.MULTILINE
    )
    return str(text)


def blocks(language, text=README):
    """Return the fenced blocks of that language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def shell(environment, folder):
    """Return the variables of a user's shell in which that virtual environment is
    active.

    Args:
        folder: the user's home.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    overrides = {
        "PATH": f"{environment / 'bin'}:{os.environ['PATH']}",
        "ONNXSERVE_HOME": str(folder / "onnxserve"),
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "MLFLOW_ARTIFACTS_DESTINATION": str(folder / "artifacts"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
    }
    return inherited | overrides


def run_smallest_example(environment, folder):
    """Run the example in that virtual environment and an empty folder, and check that
    it prints the lines that README shows. Numbers of the progress may differ.
    """
    example = section("The smallest example")
    (code,) = blocks("python", example)
    (shown,) = blocks("text", example)
    *progress, answer = shown.splitlines()
    command = [str(environment / "bin" / "python"), "-c", code]
    result = subprocess.run(
        command,
        check=False,
        cwd=folder,
        env=shell(environment, folder),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [answer]
    reported = {_NUMBER.sub("0", line) for line in result.stderr.splitlines()}
    assert {_NUMBER.sub("0", line) for line in progress} <= reported, result.stderr


def walk_by_hand(environment, checkout, folder):
    """Run the commands of docs/by-hand.md in order, and check their results and that
    they leave no running process.
    """
    script = "set -euo pipefail\n" + "".join(blocks("sh", BY_HAND))
    for port in ("5000", "8123"):
        script = script.replace(port, str(free_port()))
    log = folder / "by-hand.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", script],
            cwd=checkout,
            env=shell(environment, folder),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        code = process.wait(timeout=280)
        assert code == 0, log.read_text()
        wait_until(
            lambda: not _running_in(process.pid),
            what="the page's commands stop what they have started",
        )
    finally:
        if _running_in(process.pid):
            os.killpg(process.pid, signal.SIGTERM)
    _check_what_was_said(log.read_text())


def _check_what_was_said(output):
    assert mentions(output, "deployment flights", "created")
    assert re.search(r'\{"predictions":\s*\[(true|false)\]\}', output)
    assert "parity: proven" in output
    assert re.search(r"^flights drift 2013-07-04.*: drift$", output, re.MULTILINE)
    assert re.search(r"^UA +\d+ +0\.\d+$", output, re.MULTILINE)
    assert mentions(output, "flights", "monitor daily")
    assert re.search(r"^flights +daily +drift +1d +waiting", output, re.MULTILINE)
    change = "create  flights: – → flights: models:/flight-delay@champion (100 %)"
    assert change in output
    assert mentions(output, "Deployment flights", "deleted")


def _running_in(group):
    """Return the processes of that group that have not ended."""
    running = []
    for process in psutil.process_iter(["status"]):
        try:
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                running.append(process.pid)
        except ProcessLookupError:
            continue
    return running


_TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class Reader:
    """A reader who runs the commands of several pages in order, in one folder and with
    the same ports.
    """

    folder: Path
    environment: Mapping[str, str]
    ports: Mapping[str, str] = field(
        default_factory=lambda: {port: str(free_port()) for port in ("8123", "8124")}
    )

    def run_page(self, name):
        """Return the output of each `sh` and `python` block of docs/NAME. Each block
        must end with status 0.
        """
        page = (ROOT / "docs" / name).read_text()
        return [
            self.run(code, language)
            for language, code in re.findall(
                r"^```(sh|python)\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE
            )
        ]

    def run(self, code, language="sh"):
        """Return the output of that block, which must end with status 0."""
        for port, free in self.ports.items():
            code = code.replace(port, free)
        command = (
            ["bash", "-euo", "pipefail", "-c", code]
            if language == "sh"
            else [sys.executable, "-c", code]
        )
        ran = subprocess.run(
            command, check=False, cwd=self.folder, env=self.environment,
            capture_output=True, text=True, timeout=_TIMEOUT_SECONDS,
        )  # fmt: skip
        assert ran.returncode == 0, f"{code}\n{ran.stdout}\n{ran.stderr}"
        return ran.stdout


def run_page(name, folder, tracking_uri):
    """Return the output of each `sh` and `python` block of docs/NAME. Each block must
    end with status 0.

    Args:
        folder: the working directory; deployments are in the home that this process's
            environment specifies.
    """
    return page_reader(folder, tracking_uri).run_page(name)


def page_reader(folder, tracking_uri):
    """Return a reader whose deployments are in the home that this process's environment
    specifies.
    """
    overrides = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": tracking_uri,
        "PIP_NO_INDEX": "1",  # The packages that a page installs are already in this environment.
    }
    return Reader(folder, {**os.environ, **overrides})
