"""Tests of the wheel: its metadata for pip, and its answers without onnxserve."""

import ast
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from importlib.metadata import PathDistribution
from pathlib import Path

import orjson
import pytest
from packaging.requirements import Requirement

import onnxserve
from mlflow_deploy_plugin.contrib.edge.package import wheel_version
from mlflow_deploy_plugin.wrap.flavor.save import load_model
from tests.support.guides import ROOT


@pytest.fixture(scope="module")
def wheel(forest, tmp_path_factory):
    return onnxserve.export(
        str(forest), "wheel", tmp_path_factory.mktemp("dist"), name="Flight-Delay"
    ).path


def test_pip_reads_name_version_and_requirements(wheel):
    assert wheel.name.startswith("flight_delay-0+")
    with zipfile.ZipFile(wheel) as archive:
        (folder,) = {name.partition("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        metadata = PathDistribution(zipfile.Path(archive, f"{folder}/"))  # type: ignore[arg-type]
        assert metadata.name == "flight-delay"
        assert metadata.version == wheel.name.split("-")[1]
        needs = {
            requirement.name: requirement.specifier
            for requirement in map(Requirement, metadata.requires or [])
        }
        assert needs.keys() == {"onnxruntime", "numpy"}
        assert needs["onnxruntime"] == _asked_for()["onnxruntime"]
        assert metadata.metadata["Requires-Python"] == ">=3.11"
        recorded = {str(file) for file in metadata.files or []}
        assert recorded == {name for name in archive.namelist() if not name.endswith("/")}


def test_same_version_has_the_same_bytes(wheel, forest, tmp_path):
    again = onnxserve.export(str(forest), "wheel", tmp_path / "again.whl", name="flight_delay")
    assert again.path.read_bytes() == wheel.read_bytes()


def _asked_for():
    """Return the requirements of the package's extra `cpu`."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = (
        line
        for line in setup["options.extras_require"]["cpu"].split("\n")
        if line and not line.startswith("#")
    )
    return {requirement.name: requirement.specifier for requirement in map(Requirement, lines)}


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("3", "3"),
        ("1.2.0", "1.2.0"),
        ("m-1F_x", "0+m.1f.x"),
        ("unknown", "0+unknown"),
        ("?", "0+unknown"),
    ],
)
def test_any_version_is_valid_for_pip(version, expected):
    assert wheel_version(version) == expected


@pytest.mark.install
def test_fresh_environment_answers_as_served(wheel, forest, forest_rows, tmp_path):
    uv = Path(sys.prefix, "bin", "uv")
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([uv, "pip", "install", "-q", "--python", python, wheel], check=True)

    def run(*command):
        ran = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
        return ran.stdout

    assert "onnxserve" not in run(uv, "pip", "list", "--python", python)
    forest_rows.to_json(tmp_path / "rows.json", orient="records")
    lines = run(python, "-I", "-m", "flight_delay", tmp_path / "rows.json").splitlines()
    served = load_model(str(forest))
    want = served.run(served.schema.from_columns(forest_rows.to_dict("list")))
    for name, array in want.items():
        found = [orjson.loads(line)[name] for line in lines]
        assert found == (list(array) if name == "label" else pytest.approx(array, abs=1e-6))
    code = (
        "import flight_delay as f; print(f.__version__, f.classes(), f.predict({'carrier': 'UA', "
        "'distance': 9.0}))"
    )
    version = wheel.name.split("-")[1]
    printed = run(python, "-I", "-c", code)
    assert printed == f"{version} ['late', 'on time'] ['on time']\n"


def test_code_of_names_is_not_run(mixed, tmp_path):
    name = 'a""";raise SystemExit(7);"""\\'
    folder = shutil.copytree(mixed, tmp_path / name)
    wheel = onnxserve.export(str(folder), "wheel", tmp_path, name="harmless").path
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read("harmless/__init__.py").decode()
    assert (ast.get_docstring(ast.parse(text)) or "").startswith(f"The model {name}, version")
