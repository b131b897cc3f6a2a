"""Deployments of tiny models in a separate home. All their processes are ended after
the test.
"""

import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlflow.onnx
import psutil
import pytest
from mlflow.deployments import get_deploy_client
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema

from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.ship.deployments.backends import local
from mlflow_deploy_plugin.ship.deployments.backends.targets import parse_target
from tests.support.models import parse_graph
from tests.support.waiting import free_port

SIGNATURE = ModelSignature(inputs=Schema([ColSpec("double", "a"), ColSpec("double", "b")]))


def weighted_sum(factor):
    """Return the model y = (a + b) * factor, whose answers identify the model."""
    return parse_graph(
        f"""sum (float[N,2] x) => (float[N] y) \
<int64[1] axes = {{1}}, float factor = {{{factor}}}> {{
          total = ReduceSum <keepdims = 0> (x, axes)
          y = Mul(total, factor)
        }}"""
    )


@dataclass(frozen=True)
class Models:
    """Folders of saved models: `once` answers a + b, `twice` answers 2 (a + b); the
    other models cannot be served.
    """

    once: str
    twice: str
    broken: str
    pyfunc: str


def save_models(folder):
    """Write the models into `folder`."""
    for name, factor in (("once", 1.0), ("twice", 2.0)):
        mlflow.onnx.save_model(
            weighted_sum(factor),
            folder / name,
            signature=SIGNATURE,
            pip_requirements=["onnxruntime"],
        )
    shutil.copytree(folder / "once", folder / "broken")
    (folder / "broken" / "model.onnx").write_bytes(b"this is no graph")
    (folder / "pyfunc").mkdir()
    (folder / "pyfunc" / "MLmodel").write_text(
        "flavors: {python_function: {loader_module: json}}\n"
    )
    return Models(*(str(folder / name) for name in ("once", "twice", "broken", "pyfunc")))


@contextmanager
def empty_home(folder):
    """Yield a client with an empty home. At the end, remove the home and check that no
    process is left.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONNXSERVE_HOME", str(folder / "home"))
        # Homes do not share their list of used ports, so that concurrent tests must
        # begin at different ports. A home has at most 25 of the worker's ports.
        patch.setattr(local, "FIRST_PORT", (free_port() - 10_000) // 25 * 25)
        try:
            yield get_deploy_client("onnxserve")
        finally:
            settings = load_settings()
            store = open_store(settings.store_url)
            for endpoint in store.endpoints():
                # An endpoint without variants has no server, and checking this needs
                # Docker, which may not be installed.
                if endpoint.spec.variants:
                    parse_target(endpoint.target).backend(settings).remove(endpoint.name)
            store.close()
        left = [process.cmdline() for process in working_in(folder)]
    assert left == []


def working_in(folder):
    """Return the processes whose working directory is below `folder`."""
    processes = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder.resolve()):
                processes.append(process)
        except psutil.Error:
            continue
    return processes
