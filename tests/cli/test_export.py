"""Tests of the output of `onnxserve export`.
See tests/wrap/exporter for the exports.
"""

import pytest
from click.testing import CliRunner

from mlflow_deploy_plugin.cli.commands import main
from tests.support.models import mixed_model
from tests.support.refusals import mentions


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return mixed_model(tmp_path_factory.mktemp("export") / "flight-delay")


def test_an_export_is_one_line(model, tmp_path):
    done = CliRunner().invoke(
        main, ["export", str(model), "--format", "wheel", "-o", str(tmp_path)]
    )
    assert done.exit_code == 0, done.output
    wheel = tmp_path / "flight_delay-0+m.1-py3-none-any.whl"
    assert done.stdout.count("\n") == 1
    assert mentions(done.stdout, "flight-delay version m-1", str(wheel), "564 rows")
    assert wheel.is_file()


@pytest.mark.parametrize(
    ("arguments", "status", "names"),
    [
        (["--format", "tflite"], 1, ["tflite", "'carrier'"]),
        (["--download-wheels"], 2, ["--wheels", "--download-wheels", "bundle", "onnx"]),
        (["--name", "m"], 2, ["--name", "wheel", "onnx"]),
        (["--format", "pickle"], 2, ["'--format'"]),
        (["--rows", "none.csv"], 1, ["file none.csv"]),
    ],
)
def test_a_mistake_is_one_line(model, tmp_path, arguments, status, names):
    done = CliRunner().invoke(main, ["export", str(model), "-o", str(tmp_path / "m"), *arguments])
    assert done.exit_code == status
    assert mentions(done.stderr, *names)
    assert not (tmp_path / "m").exists()
