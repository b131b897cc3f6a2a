"""A desktop program is built, starts without Python and without a network, and answers
as the served model.
"""

import os
import shutil
import subprocess
from importlib.util import find_spec

import pytest

import onnxserve
from mlflow_deploy_plugin.contrib.edge import desktop
from mlflow_deploy_plugin.contrib.edge.desktop_program import MODEL
from mlflow_deploy_plugin.core.errors import NotInstalled
from tests.support.desktop import isolated, write_browser
from tests.support.refusals import refused

needs_builder = pytest.mark.skipif(
    find_spec("PyInstaller") is None, reason="PyInstaller is not installed"
)


@pytest.fixture(scope="module")
def program(forest, tmp_path_factory):
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
def test_program_is_small_without_training_data(program):
    folder, messages = program
    assert os.access(folder / "predict", os.X_OK)
    assert any("MB" in message and "started" in message for message in messages)
    libraries = {path.name for path in (folder / "_internal").iterdir()}
    assert not libraries & {"mlflow", "pandas", "pyarrow", "sklearn", "torch", "scipy"}
    assert sum(path.stat().st_size for path in folder.rglob("*") if not path.is_symlink()) < 250e6
    model = folder / "_internal" / MODEL
    assert (model / "MLmodel").is_file()
    assert not (model / "reference.parquet").exists()


@needs_builder
@pytest.mark.long
def test_program_serves_its_page_without_network(program, tmp_path):
    folder, _ = program
    browser = tmp_path / "chromium"
    write_browser(browser)
    ran = subprocess.run(
        [*isolated(), "env", "-i", f"PATH={tmp_path}", str(folder / "predict")],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert ran.stderr == ""
    assert "<form" in (tmp_path / "page").read_text()


def test_missing_builder_is_named(forest, tmp_path, monkeypatch):
    monkeypatch.setattr(desktop, "find_spec", lambda name: None)
    with refused(NotInstalled, "PyInstaller"):
        onnxserve.export(str(forest), "desktop", tmp_path / "program")
