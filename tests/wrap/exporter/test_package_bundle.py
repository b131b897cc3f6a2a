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
from typing import Any

import numpy as np
import pytest
import yaml
from packaging.requirements import Requirement

import mlflow_deploy_plugin as onnxserve
from mlflow_deploy_plugin.core.errors import ConversionError
from mlflow_deploy_plugin.wrap.exporter.package import write_bundle
from tests.support.models import columns, write_model
from tests.support.refusals import mentions

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


def test_a_bundle_says_how_it_is_used(bundle):
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


def test_wheels_of_a_folder_are_in_the_bundle(mixed, tmp_path):
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "numpy-2.4-py3-none-any.whl").write_bytes(b"wheel")

    made = onnxserve.export(str(mixed), "bundle", tmp_path / "b", wheels=tmp_path / "wheels").path

    assert [path.name for path in (made / "wheels").iterdir()] == ["numpy-2.4-py3-none-any.whl"]
    page = (made / "README.md").read_text()
    assert mentions(page, "--no-index --find-links wheels", "'onnxruntime>=1.29'", "'numpy>=1.26'")


@pytest.fixture(scope="module")
def conda(mixed, tmp_path_factory):
    return onnxserve.export(str(mixed), "conda", tmp_path_factory.mktemp("conda") / "flights").path


def test_a_conda_export_has_an_environment_with_the_exact_versions_of_the_check(conda):
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
def test_the_environment_of_a_conda_export_runs_it(conda, tmp_path):
    """Create the environment with micromamba, or only its part for pip in an
    environment of `venv`.
    """
    rows = "carrier,distance,hour,late\nAA,100,3,true\nUA,200,4,false\n"
    (tmp_path / "rows.csv").write_text(rows)
    python = tmp_path / "environment" / "bin" / "python"
    if micromamba := shutil.which("micromamba"):
        command = [
            micromamba,
            "create",
            "-y",
            "-p",
            str(tmp_path / "environment"),
            "-f",
            str(conda / "environment.yml"),
        ]
        subprocess.run(command, check=True)
    else:
        packages = yaml.safe_load((conda / "environment.yml").read_text())["dependencies"][-1][
            "pip"
        ]
        subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "environment")], check=True)
        install = [str(python), "-m", "pip", "install", "-q", "--retries", "0", *packages]
        if subprocess.run(install, check=False).returncode:
            pytest.skip("pip cannot install onnxruntime and numpy: there is no package index")
    done = subprocess.run(
        [python, "predict.py", tmp_path / "rows.csv"],
        cwd=conda,
        capture_output=True,
        text=True,
        check=True,
    )
    assert [json.loads(line)["label"] for line in done.stdout.splitlines()] == ["yes", "yes"]


def test_wheels_that_cannot_be_fetched_are_an_error_and_leave_no_bundle(
    mixed, tmp_path, monkeypatch
):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ConversionError, match=r"onnxruntime and numpy.*--wheels"):
        onnxserve.export(str(mixed), "bundle", tmp_path / "b", download_wheels=True)
    assert not (tmp_path / "b").exists()


def test_an_input_that_the_examples_cannot_write_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"")
    described: dict[str, Any] = {
        "name": "m",
        "version": "1",
        "columns": [],
        "tensors": [],
        "outputs": [],
    }
    with pytest.raises(ConversionError, match=r"'x' .*float16"):
        write_bundle(
            tmp_path / "b",
            tmp_path / "model.onnx",
            described,
            {"x": np.ones((1, 1), np.float16)},
            None,
            False,
        )


def test_the_example_in_cpp_answers_its_row(bundle, tmp_path):
    """Skip without `ONNXRUNTIME`, an unpacked release of ONNX Runtime: package indexes
    do not contain its headers.
    """
    root = os.environ.get("ONNXRUNTIME")
    if root is None or not (Path(root) / "include" / "onnxruntime_cxx_api.h").is_file():
        pytest.skip("no headers of ONNX Runtime: set ONNXRUNTIME to an unpacked release")
    library = next(Path(root, "lib").glob("libonnxruntime.so*"))
    source = bundle / "examples" / "predict.cpp"
    program = tmp_path / "predict"
    subprocess.run(
        [
            "g++",
            "-std=c++17",
            "-I",
            f"{root}/include",
            source,
            library,
            f"-Wl,-rpath,{root}/lib",
            "-o",
            program,
        ],
        check=True,
    )
    ran = subprocess.run(
        [program, bundle / "model.onnx"], check=True, capture_output=True, text=True
    )
    assert ran.stdout.splitlines() == [
        "f2: nan",
        "d2: -1e+300",
        f"l2: {2**53}",
        "i2: -7",
        "b2: 0",
        f"s2: {TEXT}",
    ]


@pytest.mark.install
def test_the_example_in_javascript_answers_its_row(bundle, tmp_path):
    if not shutil.which("npm"):
        pytest.skip("needs node and npm")
    folder = tmp_path / "a bundle"
    shutil.copytree(bundle, folder)
    # The install script would download CUDA.
    subprocess.run(
        ["npm", "install", "--ignore-scripts", "--no-save", "onnxruntime-node"],
        cwd=folder,
        check=True,
    )
    ran = subprocess.run(
        ["node", folder / "examples" / "predict.mjs"], check=True, capture_output=True, text=True
    )
    answers = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [next(iter(answer.values())) for answer in answers] == [
        [None],
        [-1e300],
        [2**53],
        [-7],
        [0],
        [TEXT],
    ]


@pytest.mark.install
def test_fetched_wheels_are_enough_for_a_machine_without_network(mixed, tmp_path):
    made = onnxserve.export(str(mixed), "bundle", tmp_path / "b", download_wheels=True).path
    uv = Path(sys.prefix, "bin", "uv")
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    offline = ["--offline", "--no-index", "--find-links", str(made / "wheels")]
    subprocess.run(
        [
            str(uv),
            "pip",
            "install",
            "-q",
            "--python",
            str(python),
            *offline,
            "onnxruntime",
            "numpy",
        ],
        check=True,
    )
    (tmp_path / "rows.csv").write_text("carrier,distance,hour,late\nUA,1400,17,true\n")
    ran = subprocess.run(
        [python, "-I", made / "predict.py", tmp_path / "rows.csv"], check=True, capture_output=True
    )
    assert json.loads(ran.stdout)["label"] == "yes"
