"""The start of a desktop program: a check without a display, a window, and errors."""

import json
import pickle
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from mlflow_deploy_plugin.contrib.edge.desktop_program import FACTS, MODEL, main
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from tests.support.desktop import write_browser
from tests.support.refusals import mentions

CODE = (
    "import sys, pathlib, mlflow_deploy_plugin.contrib.edge.desktop_program as p; "
    "p.main(pathlib.Path(sys.argv[1]), sys.argv[2:])"
)


@pytest.fixture
def program(mixed, tmp_path):
    """The files of a program, next to its libraries."""
    shutil.copytree(mixed, tmp_path / MODEL)
    (tmp_path / FACTS).write_text(json.dumps({"name": "flight-delay", "version": "3"}))
    return tmp_path


@pytest.fixture(autouse=True)
def keep_signal():
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def test_check_writes_outputs(mixed, program):
    rows = {
        "carrier": np.array(["AA", "UA"], object),
        "distance": np.array([1.0, -1e6]),
        "hour": np.array([1, 2]),
        "late": np.array([True, False]),
    }
    (program / "rows").write_bytes(pickle.dumps(rows))
    main(program, ["--check", str(program / "rows"), str(program / "outputs")])

    model = OnnxModel.load(mixed)
    outputs = pickle.loads((program / "outputs").read_bytes())
    np.testing.assert_equal(outputs, model.run(model.schema.from_columns(rows)))


def test_window_shows_the_page(program, monkeypatch):
    write_browser(program / "chromium")
    monkeypatch.setenv("PATH", str(program))
    main(program, [])
    page = (program / "page").read_text()
    assert mentions(page, "flight-delay", "carrier")


@pytest.mark.long
def test_standard_browser_opens_without_a_window(program, tmp_path):
    # BROWSER is the standard browser of the module webbrowser.
    command = ["env", f"BROWSER={tmp_path / 'none'}", "PATH=/none", sys.executable, "-c", CODE]
    with subprocess.Popen([*command, str(program)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.terminate()
        assert process.wait(30) == 0
    assert line.startswith("http://127.0.0.1:")


@pytest.mark.parametrize("arguments", [["-m", "module"], ["--port", "none"]])
def test_other_arguments_are_refused(arguments, program):
    with pytest.raises(SystemExit) as raised:
        main(program, arguments)
    assert mentions(str(raised.value), "port")
