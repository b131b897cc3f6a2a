"""Tests of the bundle: its wheels, and its C++ and JavaScript examples if they can be
built.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import yaml
from packaging.requirements import Requirement

import onnxserve
from mlflow_deploy_plugin.contrib.edge.package import write_bundle
from mlflow_deploy_plugin.core.errors import ConversionError
from tests.support.models import columns, write_model
from tests.support.refusals import mentions, refused

KINDS = "float[N,1] f, double[N,1] d, int64[N,1] l, int32[N,1] i, bool[N,1] b, string[N,1] s"
GRAPH = f"""
kinds ({KINDS}) => (float[N,1] f2, double[N,1] d2, int64[N,1] l2, int32[N,1] i2, \
bool[N,1] b2, string[N,1] s2) {{
  f2 = Identity(f)  d2 = Identity(d)  l2 = Identity(l)  i2 = Identity(i)  b2 = Not(b)\
  s2 = Identity(s)
}}"""
TEXT = 'a "quoted" ü\\n'
ROW = {"f": [np.nan], "d": [-1e300], "l": [2**53], "i": [-7], "b": [True], "s": [TEXT]}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    signature = columns(f="float", d="double", l="long", i="integer", b="boolean", s="string")
    model = write_model(folder / "kinds", GRAPH, signature)
    return onnxserve.export(str(model), "bundle", folder / "bundle", rows=ROW).path


def test_bundle_documents_its_use(bundle):
    page = (bundle / "README.md").read_text()
    assert page.splitlines()[0].removeprefix("# ").split(", ") == ["kinds", "version m-1"]
    assert mentions(
        page,
        "`f` (float)",
        "`d` (double)",
        "`l` (long)",
        "`i` (integer)",
        "`b` (boolean)",
        "`s` (string)",
    )
    assert mentions(page, "'onnxruntime>=1.29'", "'numpy>=1.26'")
    example = json.loads((bundle / "example.json").read_text())
    assert example["f"] == {"type": "float32", "dims": [1, 1], "data": ["NaN"]}
    assert example["s"] == {"type": "string", "dims": [1, 1], "data": [TEXT]}


def test_wheels_of_a_folder_are_bundled(mixed, tmp_path):
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "numpy-2.4-py3-none-any.whl").write_bytes(b"wheel")

    made = onnxserve.export(str(mixed), "bundle", tmp_path / "b", wheels=tmp_path / "wheels").path

    assert [path.name for path in (made / "wheels").iterdir()] == ["numpy-2.4-py3-none-any.whl"]
    page = (made / "README.md").read_text()
    assert mentions(page, "--no-index --find-links wheels", "'onnxruntime>=1.29'", "'numpy>=1.26'")


@pytest.fixture(scope="module")
def conda(mixed, tmp_path_factory):
    return onnxserve.export(str(mixed), "conda", tmp_path_factory.mktemp("conda") / "flights").path


def test_conda_environment_has_exact_versions(conda):
    """A file of `conda env create` has a name, channels, packages for conda, and at
    most one list for pip.
    """
    environment = yaml.safe_load((conda / "environment.yml").read_text())
    *packages, last = environment["dependencies"]

    assert list(environment) == ["name", "channels", "dependencies"]
    assert environment["name"] == "flight-delay-m-1"
    assert environment["channels"] == ["conda-forge"]
    assert packages[0] == f"python={platform.python_version()}"
    assert all(re.fullmatch(r"[a-z]+=\d+(\.\d+)+", package) for package in packages)
    assert list(last) == ["pip"]
    assert [Requirement(line) in freeze() for line in last["pip"]] == [True, True]
    assert mentions(
        (conda / "README.md").read_text(),
        "conda env create -f environment.yml",
        environment["name"],
    )


def freeze():
    return [Requirement(f"{name}=={version(name)}") for name in ("onnxruntime", "numpy")]


@pytest.mark.long
def test_conda_environment_runs_the_export(conda, tmp_path):
    """Create the environment with micromamba, or only its part for pip in an
    environment of `venv`.
    """
    rows = "carrier,distance,hour,late\nAA,100,3,true\nUA,200,4,false\n"
    (tmp_path / "rows.csv").write_text(rows)
    environment = tmp_path / "environment"
    python = environment / "bin" / "python"
    file = conda / "environment.yml"
    if micromamba := shutil.which("micromamba"):
        subprocess.run([micromamba, "create", "-y", "-p", environment, "-f", file], check=True)
    else:
        packages = yaml.safe_load(file.read_text())["dependencies"][-1]["pip"]
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        install = [python, "-m", "pip", "install", "-q", "--retries", "0", *packages]
        if subprocess.run(install, check=False).returncode:
            pytest.skip("pip cannot install onnxruntime and numpy: there is no package index")
    assert predicted(python, conda / "predict.py", tmp_path / "rows.csv") == ["yes", "yes"]


def predicted(*command):
    """Return the labels that a command predicts."""
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line)["label"] for line in ran.stdout.splitlines()]


@pytest.mark.long
def test_missing_wheels_leave_no_bundle(mixed, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with refused(ConversionError, "onnxruntime and numpy", "--wheels"):
        onnxserve.export(str(mixed), "bundle", tmp_path / "b", download_wheels=True)
    assert not (tmp_path / "b").exists()


def test_input_of_another_type_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"")
    described = {"name": "m", "version": "1", "columns": [], "tensors": [], "outputs": []}
    rows = {"x": np.ones((1, 1), np.float16)}
    with refused(ConversionError, "'x'", "float16"):
        write_bundle(tmp_path / "b", tmp_path / "model.onnx", described, rows, None, False)


def test_cpp_example_answers_its_row(bundle, tmp_path):
    """Skip without `ONNXRUNTIME`, an unpacked release of ONNX Runtime: package indexes
    do not contain its headers.
    """
    root = os.environ.get("ONNXRUNTIME")
    if root is None or not (Path(root) / "include" / "onnxruntime_cxx_api.h").is_file():
        pytest.skip("no headers of ONNX Runtime: set ONNXRUNTIME to an unpacked release")
    library = next(Path(root, "lib").glob("libonnxruntime.so*"))
    source = bundle / "examples" / "predict.cpp"
    program = tmp_path / "predict"
    options = ["-std=c++17", "-I", f"{root}/include", f"-Wl,-rpath,{root}/lib"]
    subprocess.run(["g++", *options, source, library, "-o", program], check=True)
    command = [program, bundle / "model.onnx"]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    values = dict(line.split(": ", 1) for line in ran.stdout.splitlines())
    assert values == {
        "f2": "nan",
        "d2": "-1e+300",
        "l2": f"{2**53}",
        "i2": "-7",
        "b2": "0",
        "s2": TEXT,
    }


@pytest.mark.install
def test_javascript_example_answers_its_row(bundle, tmp_path):
    if not shutil.which("npm"):
        pytest.skip("needs node and npm")
    folder = tmp_path / "a bundle"
    shutil.copytree(bundle, folder)
    # The install script would download CUDA.
    install = ["npm", "install", "--ignore-scripts", "--no-save", "onnxruntime-node"]
    subprocess.run(install, cwd=folder, check=True)
    command = ["node", folder / "examples" / "predict.mjs"]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    answers = [json.loads(line) for line in ran.stdout.splitlines()]
    values = [next(iter(answer.values())) for answer in answers]
    assert values == [[None], [-1e300], [2**53], [-7], [0], [TEXT]]


@pytest.mark.install
def test_fetched_wheels_are_enough_offline(mixed, tmp_path):
    made = onnxserve.export(str(mixed), "bundle", tmp_path / "b", download_wheels=True).path
    uv = Path(sys.prefix, "bin", "uv")
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    offline = ["--offline", "--no-index", "--find-links", made / "wheels"]
    install = [uv, "pip", "install", "-q", "--python", python, *offline, "onnxruntime", "numpy"]
    subprocess.run(install, check=True)
    (tmp_path / "rows.csv").write_text("carrier,distance,hour,late\nUA,1400,17,true\n")
    assert predicted(python, "-I", made / "predict.py", tmp_path / "rows.csv") == ["yes"]
