"""The installed package: entry points, extras, tested versions, and the modules that an
import loads.
"""

import ast
import re
import subprocess
import sys
from collections import Counter
from configparser import ConfigParser
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from importlib.metadata import distribution, entry_points
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from mlflow_deploy_plugin.serve.runtime.session import OLDEST_ONNXRUNTIME
from mlflow_deploy_plugin.wrap.exporter.package import REQUIREMENTS

ROOT = Path(__file__).parents[1]
CIRCLES = (("serve.http.routes", "serve.http.pages.page_views"),)
"""The import that closes the circle that is left: a page shows the table of routes, and
the routes import the pages when the first one is requested.
"""


def requirements_of(extra):
    """Return the packages of `pip install mlflow-onnxserve[extra]`, including the
    packages of nested extras.
    """
    names: set[str] = set()
    for line in distribution("mlflow-onnxserve").requires or []:
        requirement = Requirement(line)
        if requirement.marker is None or not requirement.marker.evaluate({"extra": extra}):
            continue
        if requirement.marker.evaluate({"extra": ""}):
            continue
        if requirement.name == "mlflow-onnxserve":
            names |= set(
                chain.from_iterable(requirements_of(inner) for inner in requirement.extras)
            )
        else:
            names.add(requirement.name)
    return names


def test_mlflow_finds_the_deployment_target():
    (target,) = entry_points(group="mlflow.deployments", name="onnxserve")
    assert target.value == "mlflow_deploy_plugin.ship.deployments.client"


def test_the_command_is_installed():
    (command,) = entry_points(group="console_scripts", name="onnxserve")
    assert command.value == "mlflow_deploy_plugin.cli.entry:main"
    assert callable(command.load())


@pytest.mark.parametrize(
    "extra", ["cpu", "gpu", "sklearn", "torch", "s3", "postgresql", "all", "dev"]
)
def test_no_extra_asks_for_both_runtimes(extra):
    runtimes = requirements_of(extra) & {"onnxruntime", "onnxruntime-gpu"}
    assert len(runtimes) <= 1
    assert ("onnxruntime-gpu" in runtimes) == (extra == "gpu")


@pytest.mark.parametrize("extra", ["cpu", "gpu"])
def test_the_oldest_runtime_that_is_installed_is_the_oldest_that_opens_a_model(extra):
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options.extras_require"][extra].splitlines()
    (runtime,) = [Requirement(line) for line in lines if line.startswith("onnxruntime")]
    assert str(runtime.specifier) == ">=" + ".".join(map(str, OLDEST_ONNXRUNTIME))
    assert f"onnxruntime{runtime.specifier}" in REQUIREMENTS


def test_the_versions_of_python_that_are_promised_are_installed_made_and_tried():
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    promised = re.findall(r"Python :: 3\.(\d+)", config["metadata"]["classifiers"])
    first = promised[0]
    last = promised[-1]
    assert config["options"]["python_requires"] == f">=3.{first},<3.{int(last) + 1}"
    assert f"(3, {first}) <= sys.version_info[:2] <= (3, {last})" in (ROOT / "Makefile").read_text()
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yaml").read_text())["jobs"]
    assert jobs["test"]["strategy"]["matrix"]["python"] == [f"3.{minor}" for minor in promised]


def test_dev_requires_all_extras_except_torch_and_transformers():
    """The Makefile installs the CPU build of torch if it exists; PyPI's build installs
    gigabytes of CUDA.
    """
    assert requirements_of("all") - requirements_of("transformers") <= requirements_of("dev")
    assert not {"torch", "onnxscript"} & requirements_of("dev")


def test_constraints_pin_exact_and_compatible_versions():
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    pinned = dict(line.split("==") for line in lines)
    assert pinned["torch"] == "2.13.0"
    assert tuple(map(int, pinned["pandas"].split(".")[:2])) < (3, 1)
    assert re.fullmatch(r"[\d.]+", pinned["uvicorn"])
    assert re.fullmatch(r"[\d.]+", pinned["uvicorn-worker"])


@pytest.mark.parametrize("module", ["mlflow_deploy_plugin", "mlflow_deploy_plugin.serve.http.app"])
def test_importing_the_server_brings_neither_mlflow_nor_pandas(module):
    heavy = "{'mlflow', 'pandas', 'sklearn', 'torch', 'sqlalchemy', 'pyarrow'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert result.stdout.strip() == "[]"


def test_every_public_name_of_the_package_can_be_imported():
    package = import_module("mlflow_deploy_plugin")
    assert [name for name in package.__all__ if not hasattr(package, name)] == []


def imported_modules(path, modules):
    """Return the modules of the package that a file imports, also within functions and
    for types.
    """
    imported: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # The name is a module or is in the module.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            imported.update(name if name in modules else str(node.module) for name in names)
    return imported & modules.keys()


def test_no_modules_import_each_other():
    folder = ROOT / "mlflow_deploy_plugin"
    modules = {}
    for path in folder.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        modules[".".join(parts).removesuffix(".__init__")] = path
    graph = {name: imported_modules(path, modules) - {name} for name, path in modules.items()}
    for importer, imported in CIRCLES:
        graph[f"mlflow_deploy_plugin.{importer}"].discard(f"mlflow_deploy_plugin.{imported}")
    circle: list[str] = []
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle = error.args[1]
    assert circle == []


def test_a_module_name_occurs_once_in_a_part():
    folder = ROOT / "mlflow_deploy_plugin"
    names = Counter(
        (path.relative_to(folder).parts[0], path.stem) for path in folder.glob("*/**/[!_]*.py")
    )
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize(
    ("module", "others"),
    [
        ("serve.protocols.side_messages", (".arrow", ".large_json", "orjson")),
        ("core.registry.model_uri", ("mlflow.tracking", ".resolution")),
        ("serve.inference_log.windows", ("duckdb", "pandas", "pyarrow")),
        ("serve.inference_log.log_reader", ("duckdb", "pandas")),
    ],
)
def test_a_light_module_loads_no_heavy_library(module, others):
    code = (
        f"import sys, mlflow_deploy_plugin.{module}; print([name for name in sys.modules if "
        f"name.endswith({others})])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"
