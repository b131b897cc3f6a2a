"""A desktop program is built, starts without Python and without a network, and answers
as the served model.
"""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import mlflow_deploy_plugin as onnxserve
from mlflow_deploy_plugin.core.errors import AlreadyExists, ConversionError, NotInstalled
from mlflow_deploy_plugin.wrap.desktop import FACTS, MODEL
from mlflow_deploy_plugin.wrap.exporter import desktop
from tests.support.pyfuncs import save_pyfuncs
from tests.support.refusals import refused
from tests.support.waiting import wait_until

needs_builder = pytest.mark.skipif(
    not (find_spec("PyInstaller") and find_spec("_tkinter")),
    reason="PyInstaller or tkinter is not installed",
)


@pytest.fixture(scope="module")
def program(
    forest: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Path, list[str]]]:
    """A built program, and the messages of its build. Its folder is deleted, because it
    has 160 MB.
    """
    folder = tmp_path_factory.mktemp("dist") / "forest"
    messages = list[str]()
    exported = onnxserve.export(str(forest), "desktop", folder, progress=messages.append)
    yield exported.path, messages
    shutil.rmtree(folder)


@needs_builder
@pytest.mark.long
def test_a_program_has_its_size_and_start_time_and_no_training_data(
    program: tuple[Path, list[str]],
) -> None:
    folder, messages = program
    assert os.access(folder / "predict", os.X_OK)
    assert any("MB" in message and "started" in message for message in messages)
    libraries = {path.name for path in (folder / "_internal").iterdir()}
    assert not libraries & {"mlflow", "pandas", "pyarrow", "sklearn", "torch", "scipy"}
    assert sum(path.stat().st_size for path in folder.rglob("*") if not path.is_symlink()) < 250e6
    model = folder / "_internal" / MODEL
    assert (model / "MLmodel").is_file()
    assert not (model / "reference.parquet").exists()
    assert json.loads((folder / "_internal" / FACTS).read_text())["parity"] == "proven"


@needs_builder
@pytest.mark.long
@pytest.mark.skipif(
    shutil.which("Xvfb") is None,
    reason="no Xvfb on this machine (apt-get install xvfb)",
)
def test_a_program_opens_its_window_without_a_network_and_ends_on_sigterm(
    program: tuple[Path, list[str]],
    tmp_path: Path,
) -> None:
    folder, _ = program
    reader, writer = os.pipe()
    with subprocess.Popen(
        ["Xvfb", "-displayfd", str(writer)],
        pass_fds=[writer],
        stderr=subprocess.DEVNULL,
    ) as server:
        os.close(writer)
        with open(reader) as numbers:
            display = int(numbers.readline())
        isolated = (
            ["unshare", "-rn"]
            if subprocess.run(["unshare", "-rn", "true"], check=False).returncode == 0
            else []
        )
        command = [*isolated, "env", "-i", f"DISPLAY=:{display}", str(folder / "predict")]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as window:
            from PIL import ImageGrab

            wait_until(
                lambda: len(ImageGrab.grab(xdisplay=f":{display}").getcolors(2**24) or ()) > 10,
                what="the window",
            )
            window.send_signal(signal.SIGTERM)
            assert window.wait(30) == -signal.SIGTERM
            assert window.stderr is not None
            assert window.stderr.read() == b""
        server.terminate()


@needs_builder
def test_an_existing_program_is_not_overwritten(forest: Path, tmp_path: Path) -> None:
    (tmp_path / "dist").mkdir()
    with refused(AlreadyExists, "dist"):
        onnxserve.export(str(forest), "desktop", tmp_path / "dist")


@needs_builder
def test_a_version_without_an_onnx_form_has_no_program(tmp_path: Path) -> None:
    pyfunc = next(iter(save_pyfuncs(tmp_path).values()))
    with refused(ConversionError, "onnxserve wrap"):
        onnxserve.export(str(pyfunc), "desktop", tmp_path / "dist")
    assert not (tmp_path / "dist").exists()


@pytest.mark.parametrize("missing", ["PyInstaller", "openpyxl", "_tkinter"])
def test_a_missing_package_is_named(
    missing: str,
    forest: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(desktop, "find_spec", lambda name: None if name == missing else object())
    with refused(NotInstalled, missing.strip("_")):
        onnxserve.export(str(forest), "desktop", tmp_path / "program")
