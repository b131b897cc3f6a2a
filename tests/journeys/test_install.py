"""Tests of the package in empty environments with the newest dependencies, following
README from its `pip install` on.

`make test-install` runs these tests, because they need a package index. `make test`
does not run them.
"""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

from mlflow_deploy_plugin.core.version import __version__
from mlflow_deploy_plugin.ship.images.context import PROJECT_FILES
from tests.support.guides import (
    BY_HAND,
    README,
    ROOT,
    blocks,
    run_smallest_example,
    shell,
    walk_by_hand,
)
from tests.support.models import tensor_model

# The first installation downloads all packages.
pytestmark = [pytest.mark.install, pytest.mark.timeout(900)]

UV = Path(sys.prefix, "bin", "uv")
PACKAGE = "mlflow_deploy_plugin"
INSTALL = (ROOT / "docs" / "install.md").read_text()
LEFT_OUT = {
    "gpu": "1.6 GB of CUDA",
    "openvino": "another build of ONNX Runtime, which is not installed next to onnxruntime",
    "tensorflow": "600 MB of TensorFlow",
    "keras": "no backend of its own, so that it is imported beside torch or TensorFlow only",
    "all": "the extras, each of which is tried alone",
    "light": "what `make install-light` installs",
    "dev": "what `make install` installs",
}
IMPORTS_OF_EXTRAS = {
    "cpu": "from mlflow_deploy_plugin.serve.runtime.session import import_onnxruntime; "
    "import_onnxruntime().InferenceSession",
    "monitoring": (
        "import evidently, matplotlib, apprise, mlflow_deploy_plugin.serve.inference_log.query, "
        "mlflow_deploy_plugin.watch.run, mlflow_deploy_plugin.watch.reports, "
        "mlflow_deploy_plugin.cli.monitor"
    ),
    "controller": "import mlflow_deploy_plugin.cli.controller, mlflow_deploy_plugin.cli.rollout, "
    "mlflow_deploy_plugin.promote.rollouts.leadership",
    "ui": "import mlflow_deploy_plugin.ui.app",
    "sklearn": "import mlflow_deploy_plugin.wrap.convert.sklearn.conversion",
    "torch": "import mlflow_deploy_plugin.wrap.convert.torch, onnxscript",
    "mlserver": "import catboost, lightgbm, xgboost, mlflow_deploy_plugin.contrib.mlserver.adopt",
    "statsmodels": "import mlflow_deploy_plugin.contrib.estimators.statsmodels",
    "text": "import tokenizers",
    "transformers": "import sentence_transformers, transformers",
    "pmml": "import mlflow_deploy_plugin.contrib.estimators.pmml_model",
    "desktop": "import PyInstaller, mlflow_deploy_plugin.contrib.edge.desktop",
    "jwt": "import threading, pathlib, mlflow_deploy_plugin.serve.agent.keys as keys; "
    "keys.issuer_key_fetcher(pathlib.Path('.'), 'https://here', threading.Event())",
    "s3": "import boto3, mlflow_deploy_plugin.serve.inference_log.storage",
    "postgresql": "import sqlalchemy; sqlalchemy.create_engine('postgresql+psycopg://user@host/db')",
    "grpc": (
        "import mlflow_deploy_plugin.serve.grpc.grpc_server\n"
        "import mlflow_deploy_plugin.serve.grpc.service"
    ),
    "redis": "from mlflow_deploy_plugin.serve.inference.circuit_breaker import import_redis; "
    "import_redis('redis://host:6379/0')",
    "kafka": "import mlflow_deploy_plugin.contrib.kafka.relay",
    "delta": "import deltalake",
    "docker": (
        "import mlflow_deploy_plugin.ship.deployments.backends.docker, "
        "mlflow_deploy_plugin.ship.images.engine"
    ),
    "kubernetes": "import mlflow_deploy_plugin.ship.deployments.backends.kubernetes",
    "explain": "import shap",
    "bom": "import mlflow_deploy_plugin.promote.evidence.bom",
    "signing": "import model_signing.signing, mlflow_deploy_plugin.core.signatures",
    "spark": "import pyspark.sql, mlflow_deploy_plugin.contrib.spark.batch",
    "otel": (
        "import os; os.environ['OTEL_TRACES_EXPORTER'] = 'otlp'; from "
        "mlflow_deploy_plugin.serve.observability.tracing import open_tracer; assert open_tracer()"
    ),
}
NEEDS_AN_EXTRA = {
    "ai_edge_litert",
    "confluent_kafka",
    "cyclonedx",
    "docker",
    "duckdb",
    "flask_cors",
    "flask_wtf",
    "grpc",
    "jpmml_evaluator",
    "keras",
    "kubernetes",
    "mlflow_oidc_auth",
    "onnxruntime",
    "scipy",
    "skl2onnx",
    "sklearn",
    "statsmodels",
    "tensorflow",
    "torch",
}
"""The imports that may be missing for a module of the package in an environment without
extras and other logins.
"""

_IMPORT_ALL = f"""
import importlib, pkgutil, {PACKAGE}
missing = set()
for module in pkgutil.walk_packages({PACKAGE}.__path__, "{PACKAGE}."):
    if module.name.endswith(".__main__") or ".migrations." in module.name:
        continue  # those run
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        missing.add(error.name)
print(*missing)
"""


@pytest.fixture(scope="module")
def wheel(checkout):
    _output(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", "dist", "."], cwd=checkout
    )
    (made,) = checkout.glob("dist/*.whl")
    return made


@pytest.fixture
def environment(tmp_path, wheel):
    """Yield a function that installs the wheel with extras in an empty virtual
    environment, without constraints.
    """
    folder = tmp_path / "environment"

    def make(extras):
        _output([UV, "venv", "-q", "--python", sys.executable, folder])
        if extras == "torch":
            _install_torch(folder)
        _install(folder, f"{wheel}[{extras}]")
        return folder

    yield make
    shutil.rmtree(folder, ignore_errors=True)  # Each environment takes half a gigabyte.


def test_release_build_is_complete_and_installs(checkout, wheel, tmp_path):
    """`python -m build` makes the sdist, and the wheel from the sdist
    (.github/workflows/release.yaml).
    """
    _output([sys.executable, "-m", "build", "--outdir", tmp_path], cwd=checkout)
    (built,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    _output([sys.executable, "-m", "twine", "check", "--strict", built, sdist])
    ours = {
        str(path.relative_to(checkout))
        for path in (checkout / PACKAGE).rglob("*")
        if path.is_file()
    }
    ours = {name for name in ours if "__pycache__" not in name} | {"onnxserve.py"}

    for artifact in (wheel, built):
        with zipfile.ZipFile(artifact) as archive:
            held = set(archive.namelist())
        assert {name for name in held if ".dist-info/" not in name and ".data/" not in name} == ours
        brought = {name.partition("share/onnxserve/")[2] for name in held if ".data/" in name}
        assert brought == set(PROJECT_FILES)  # Images are built from these files.

    with tarfile.open(sdist) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    assert ours | {"README.md", "LICENSE", "setup.cfg", "pyproject.toml"} <= sources
    # The sdist must not contain an incomplete set of tests.
    assert not any(name.startswith("tests/") for name in sources)

    folder = tmp_path / "environment"
    _output([UV, "venv", "-q", "--python", sys.executable, folder])
    _install(folder, f"{sdist}[cpu]")
    assert __version__ in _output([folder / "bin" / "onnxserve", "--version"], cwd=tmp_path)


def test_extras_are_tested_and_documented():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert set(setup["options.extras_require"]) == IMPORTS_OF_EXTRAS.keys() | LEFT_OUT.keys() | {
        "projects"
    }
    assert [extra for extra in IMPORTS_OF_EXTRAS if f"`{extra}`" not in INSTALL] == []
    assert f"torch=={_torch_version()}+cpu" in INSTALL


def test_install_page_runs(checkout, tmp_path):
    """The second block upgrades an older build. Here the older build is the first
    block's build without one module.
    """
    folder = tmp_path / "environment"
    _output([sys.executable, "-m", "venv", folder])
    install, upgrade = (block for block in blocks("sh", INSTALL) if "pip wheel" in block)
    installed = "import mlflow_deploy_plugin.core.version as version; print(version.__file__)"
    save = (
        "import onnxserve, numpy as np; from sklearn.linear_model import "
        "LinearRegression; X = np.eye(3); onnxserve.save_model(LinearRegression().fit(X, X[:, "
        "0]), 'model', input_example=X)"
    )
    script = f"""
        set -euo pipefail
        {install}
        rm "$(cd / && python -c '{installed}')"
        {upgrade}
        cd {tmp_path}
        python -W ignore -c "{save}"
        grep mlflow-onnxserve model/conda.yaml
        python -m venv other
        other/bin/pip install -q --no-deps -r <(grep mlflow-onnxserve model/requirements.txt)
        other/bin/pip show --files mlflow-onnxserve
    """
    environment = {**shell(folder, tmp_path), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    walked = subprocess.run(
        ["bash", "-c", script],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert walked.returncode == 0, walked.stderr
    assert f"mlflow-onnxserve[cpu]=={__version__}" in walked.stdout
    assert "mlflow_deploy_plugin/core/version.py" in walked.stdout


def test_package_imports_without_extras(environment, tmp_path):
    python = environment("") / "bin" / "python"
    missing = _output([python, "-W", "ignore", "-c", _IMPORT_ALL], cwd=tmp_path).split()
    assert set(missing) == NEEDS_AN_EXTRA
    command = python.with_name("onnxserve")
    assert "no deployments" in _output([command, "list"], cwd=tmp_path)
    model = tensor_model(tmp_path / "model")
    planned = _output([command, "build-docker", model, "--dry-run"], cwd=tmp_path)
    assert " docker/Dockerfile\n" in planned


@pytest.mark.parametrize("extra", IMPORTS_OF_EXTRAS)
def test_extra_installs_its_imports(extra, environment, tmp_path):
    _output(
        [environment(extra) / "bin" / "python", "-W", "ignore", "-c", IMPORTS_OF_EXTRAS[extra]],
        cwd=tmp_path,
    )


def test_readme_command_installs_the_example(checkout, tmp_path):
    folder = tmp_path / "environment"
    _output([UV, "venv", "-q", "--seed", "--python", sys.executable, folder])
    install, _ = blocks("sh", README)
    _output(["bash", "-c", f"source {folder}/bin/activate && {install}"], cwd=checkout)
    run_smallest_example(folder, tmp_path)


def test_oldest_dependencies_pass_tests(checkout, tmp_path):
    """uv installs the oldest version of each direct dependency of a source tree. For a
    wheel, it would install the newest.
    """
    folder = tmp_path / "environment"
    _output([UV, "venv", "-q", "--python", sys.executable, folder])
    _install(
        folder,
        f"{checkout}[cpu,controller,signing,sklearn,statsmodels,ui]",
        "--resolution",
        "lowest-direct",
    )
    _install(folder, "hypothesis", "pytest", "pytest-timeout", "pytest-xdist")
    run_smallest_example(folder, tmp_path)
    of_gunicorn = ("serve/test_gunicorn_conf.py", "serve/http/workers/test_fast_worker_gunicorn.py")
    folders = [
        f"tests/{folder}"
        for folder in ("promote/gate", "watch/alerts", "serve/runtime", *of_gunicorn)
    ]
    _output(
        [folder / "bin" / "python", "-m", "pytest", "-q", "-n", "2", "-m", "not long", *folders],
        cwd=checkout,
    )


def test_by_hand_page_runs_with_wheel(environment, checkout, tmp_path):
    """The folder contains only the files of the checkout that the page requires,
    without the package.
    """
    folder = tmp_path / "examples"
    folder.mkdir()
    shutil.copytree(checkout / "projects", folder / "projects")
    for name in ("MLproject", "python_env.yaml"):
        shutil.copy(checkout / name, folder)
    (extras,) = re.findall(r"`pip install '\.\[([\w,]+)\]'`", BY_HAND)
    walk_by_hand(environment(extras), folder, tmp_path)


def _install(environment, *arguments):
    _output([UV, "pip", "install", "-q", "--python", environment, *arguments])


def _install_torch(environment):
    """Install torch's pinned CPU build with pip, because uv does not find it. The build
    on PyPI needs gigabytes of CUDA.
    """
    version = _torch_version()
    pip = [sys.executable, "-m", "pip", "--python", environment, "install", "-q"]
    if (
        subprocess.run([*pip, f"torch=={version}+cpu"], check=False, capture_output=True).returncode
        != 0
    ):
        pytest.skip(f"no CPU build of torch {version} is found for this Python")


def _torch_version():
    (version,) = re.findall(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return str(version)


def _output(command, cwd=None):
    """Return the output of the command. If the command fails, fail the test with its
    errors.
    """
    variables = shell(Path(sys.prefix), cwd or Path.cwd())
    result = subprocess.run(
        command, check=False, cwd=cwd, env=variables, capture_output=True, text=True
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"
    return result.stdout
