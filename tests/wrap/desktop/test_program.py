"""The start of the program: a check without a display, and errors in one line."""

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.wrap.desktop import MODEL
from mlflow_deploy_plugin.wrap.desktop.program import main
from tests.support.refusals import mentions


def test_the_check_starts_the_server_and_writes_the_outputs_of_the_model(
    mixed: Path,
    tmp_path: Path,
) -> None:
    shutil.copytree(mixed, tmp_path / MODEL)
    rows = {
        "carrier": np.array(["AA", "UA"], object),
        "distance": np.array([1.0, -1e6]),
        "hour": np.array([1, 2]),
    }
    rows["late"] = np.array([True, False])
    (tmp_path / "rows").write_bytes(pickle.dumps(rows))
    main(tmp_path, ["--check", str(tmp_path / "rows"), str(tmp_path / "outputs")])

    model = OnnxModel.load(mixed)
    outputs = pickle.loads((tmp_path / "outputs").read_bytes())
    np.testing.assert_equal(outputs, model.run(model.schema.from_columns(rows)))


def test_other_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as raised:
        main(tmp_path, ["-m", "mlflow_deploy_plugin.serve.pyfunc"])
    assert mentions(str(raised.value), "usage")


def test_without_a_display_the_program_ends_with_one_line(mixed: Path, tmp_path: Path) -> None:
    shutil.copytree(mixed, tmp_path / MODEL)
    (tmp_path / "program.json").write_text('{"name": "flight-delay", "version": "3"}')
    code = (
        "import sys, pathlib, mlflow_deploy_plugin.wrap.desktop.program as p; "
        "p.main(pathlib.Path(sys.argv[1]), [])"
    )
    command = ["env", "-u", "DISPLAY", sys.executable, "-c", code, str(tmp_path)]
    ran = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 1
    assert len(ran.stderr.splitlines()) == 1
    assert mentions(ran.stderr, "display")
