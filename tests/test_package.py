"""The installed package: entry points, extras, tested versions, and the modules that an
import loads.
"""

import re
import subprocess
import sys
from collections import Counter
from configparser import ConfigParser
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import distribution
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from mlflow_deploy_plugin.contrib.edge.package import REQUIREMENTS
from mlflow_deploy_plugin.serve.runtime.session import OLDEST_ONNXRUNTIME

ROOT = Path(__file__).parents[1]
CIRCLES = (("serve.http.routes", "serve.http.pages.page_views"),)
"""The import that closes the circle that is left: a page shows the table of routes, and
the routes import the pages when the first one is requested.
"""


@cache
def requirements():
    return [Requirement(line) for line in distribution("mlflow-onnxserve").requires or []]


def requirements_of(extra):
    """Return the packages of `pip install mlflow-onnxserve[extra]`, including the
    packages of nested extras.
    """
    names = set()
    for requirement in requirements():
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


@pytest.mark.parametrize(
    "extra", ["cpu", "gpu", "sklearn", "torch", "s3", "postgresql", "all", "dev"]
)
def test_extra_requires_at_most_one_runtime(extra):
    runtimes = requirements_of(extra) & {"onnxruntime", "onnxruntime-gpu"}
    assert len(runtimes) <= 1
    assert ("onnxruntime-gpu" in runtimes) == (extra == "gpu")


@pytest.mark.parametrize("extra", ["cpu", "gpu"])
def test_oldest_runtime_is_required(extra):
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options.extras_require"][extra].splitlines()
    (runtime,) = [Requirement(line) for line in lines if line.startswith("onnxruntime")]
    assert str(runtime.specifier) == ">=" + ".".join(map(str, OLDEST_ONNXRUNTIME))
    assert f"onnxruntime{runtime.specifier}" in REQUIREMENTS


def test_python_versions_agree():
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    promised = re.findall(r"Python :: 3\.(\d+)", config["metadata"]["classifiers"])
    first = promised[0]
    last = promised[-1]
    assert config["options"]["python_requires"] == f">=3.{first},<3.{int(last) + 1}"
    assert f"(3, {first}) <= sys.version_info[:2] <= (3, {last})" in (ROOT / "Makefile").read_text()
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yaml").read_text())["jobs"]
    assert jobs["test"]["strategy"]["matrix"]["python"] == [f"3.{minor}" for minor in promised]


def test_dev_extra_is_complete():
    """The Makefile installs the CPU build of torch if it exists; PyPI's build installs
    gigabytes of CUDA.
    """
    assert requirements_of("all") - requirements_of("transformers") <= requirements_of("dev")
    assert not {"torch", "onnxscript"} & requirements_of("dev")


IMPORT = re.compile(r"^ *(?:from ([\w.]+) )?import (\([^)]*\)|[^#\n]+)", re.MULTILINE)


def imported_modules(path, modules):
    """Return the modules of the package that a file imports, also within functions and
    for types. A syntax tree would need a second for the package.
    """
    imported = set()
    for origin, text in IMPORT.findall(path.read_text()):
        names = re.findall(r"([\w.]+)(?: as \w+)?", text)
        if origin:
            # The name is a module or is in the module.
            names = [f"{origin}.{name}" for name in names]
            names = [name if name in modules else origin for name in names]
        imported.update(names)
    return imported & modules.keys()


def test_imports_have_no_circles():
    folder = ROOT / "mlflow_deploy_plugin"
    modules = {}
    for path in folder.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        modules[".".join(parts).removesuffix(".__init__")] = path
    graph = {name: imported_modules(path, modules) - {name} for name, path in modules.items()}
    for importer, imported in CIRCLES:
        graph[f"mlflow_deploy_plugin.{importer}"].discard(f"mlflow_deploy_plugin.{imported}")
    circle = []
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle = error.args[1]
    assert circle == []


def test_module_name_is_unique_within_part():
    folder = ROOT / "mlflow_deploy_plugin"
    names = Counter(
        (path.relative_to(folder).parts[0], path.stem) for path in folder.glob("*/**/[!_]*.py")
    )
    assert [name for name, count in names.items() if count > 1] == []


HEAVY = ("mlflow", "pandas", "sklearn", "torch", "sqlalchemy", "pyarrow")


@pytest.mark.parametrize(
    ("module", "others"),
    [
        ("core.version", HEAVY),
        ("serve.http.app", HEAVY),
        ("serve.agent.__main__", (*HEAVY, "numpy", "requests", "urllib3")),
        ("core.registry", (*HEAVY, "numpy", "pydantic", "yaml", "requests", ".core.store")),
        ("serve.protocols.side_messages", (".arrow", ".large_json", "orjson")),
        ("core.registry.model_uri", ("mlflow.tracking", ".resolution")),
        ("serve.inference_log.windows", ("duckdb", "pandas", "pyarrow")),
        pytest.param(
            "serve.inference_log.log_reader", ("duckdb", "pandas"), marks=pytest.mark.long
        ),
    ],
)
def test_light_module_loads_no_heavy_library(module, others):
    ends = tuple(name for name in others if name.startswith("."))
    code = (
        f"import sys, mlflow_deploy_plugin.{module}; print([name for name in sys.modules if "
        f"name in {others} or name.endswith({ends})])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"
