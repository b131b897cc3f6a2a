"""An X server without a screen, and a version with an input example."""

import gc
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlflow_deploy_plugin.core.mlmodel import INPUT_EXAMPLE
from mlflow_deploy_plugin.wrap.desktop.window import ProgramWindow
from tests.support import low_descriptors
from tests.support.models import mixed_model, tensor_model

FACTS = {"name": "flight-delay", "version": "3", "git commit": "6d1f0ab"}


@pytest.fixture(scope="session")
def display() -> Iterator[str]:
    """Start Xvfb on a free display and return the display's name, such as :5."""
    if shutil.which("Xvfb") is None:
        pytest.skip("no Xvfb on this machine (apt-get install xvfb)")
    reader, writer = os.pipe()
    command = ["Xvfb", "-displayfd", str(writer), "-screen", "0", "1280x800x24", "-nolisten", "tcp"]
    with subprocess.Popen(command, pass_fds=[writer], stderr=subprocess.DEVNULL) as server:
        os.close(writer)
        with open(reader) as numbers:
            yield f":{int(numbers.readline())}"
        server.terminate()


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = mixed_model(tmp_path_factory.mktemp("mixed") / "flight-delay")
    row = {"carrier": "AA", "distance": 1400.5, "hour": 17, "late": True}
    (folder / INPUT_EXAMPLE).write_text(
        json.dumps(
            {
                "dataframe_split": {
                    "columns": [*row],
                    "data": [[*row.values()]],
                }
            }
        ),
    )
    return folder


@pytest.fixture(autouse=True)
def closed_windows_are_deleted_here() -> Iterator[None]:
    """Delete closed windows in Tk's thread. Otherwise the thread of a server might
    collect them. Tk needs low file descriptors.
    """
    with low_descriptors.released():
        yield
        gc.collect()


@pytest.fixture
def window(
    display: str,
    mixed: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[ProgramWindow]:
    monkeypatch.setenv("DISPLAY", display)
    window = ProgramWindow(mixed, FACTS)
    yield window
    window.close()


@pytest.fixture
def tensor_window(
    display: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[ProgramWindow]:
    monkeypatch.setenv("DISPLAY", display)
    window = ProgramWindow(tensor_model(tmp_path / "images"), FACTS)
    yield window
    window.close()
