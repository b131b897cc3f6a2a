"""The process for a model without an ONNX form reports why it cannot start."""

import os
import subprocess
import sys

import numpy as np
import pytest

from mlflow_deploy_plugin.core.errors import InvalidArtifact
from mlflow_deploy_plugin.serve.pyfunc.__main__ import start_scorer
from tests.support.refusals import mentions


def test_foreign_pickle_names_both_versions(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    (tmp_path / "MLmodel").write_text(
        "flavors: {python_function: {loader_module: mlflow.sklearn, model_path: model.pkl}}\n"
    )
    (tmp_path / "requirements.txt").write_text("mlflow==2.9.2\nnumpy==0.1\n")
    (tmp_path / "model.pkl").write_bytes(b"cnumpy\nno_such_name\n.")
    with pytest.raises(InvalidArtifact) as refused:
        start_scorer(tmp_path)
    message = str(refused.value)
    assert message.startswith("MLflow cannot load the model: AttributeError: ")
    assert message.endswith(
        f"; install the versions it was logged with: numpy 0.1 ({np.__version__} is installed)"
    )
    assert str(tmp_path) not in message


def test_missing_package_names_the_installation(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    (tmp_path / "MLmodel").write_text(
        "flavors: {python_function: {loader_module: not_installed_here}}\n"
    )
    (tmp_path / "requirements.txt").write_text("mlflow==2.9.2\nnumpy==0.1\n")
    with pytest.raises(InvalidArtifact) as refused:
        start_scorer(tmp_path)
    message = str(refused.value)
    assert message.startswith(
        "the model needs the Python module 'not_installed_here', which is not installed here (it "
    )
    assert mentions(message, "numpy 0.1", np.__version__, "`pip install")
    assert mentions(message, "`mlflow.pyfunc.get_model_dependencies(MODEL_URI)`")
    assert message.endswith("; to include your own modules in the model, log it with `code_paths`")
    assert str(tmp_path) not in message


OWN_MODULES = """
core core.column_names core.errors core.logs core.messages core.mlmodel core.model_code
core.processes core.processes.child core.processes.memory core.version core.yaml_text
serve serve.protocols serve.protocols.invocation_tables serve.protocols.side_messages
serve.pyfunc serve.pyfunc.__main__ serve.pyfunc.process serve.pyfunc.scorer
serve.runtime serve.runtime.artifact serve.runtime.feeds serve.runtime.log_columns
serve.runtime.pyfunc_artifact serve.runtime.values
"""
IMPORTED = """
import sys
import mlflow.pyfunc.scoring_server, mlflow.tracing
import pandas
pandas.Series([""])  # pandas imports pyarrow here.
before = set(sys.modules)
import mlflow_deploy_plugin.serve.pyfunc.__main__
import mlflow_deploy_plugin.serve.pyfunc.scorer
print(*(set(sys.modules) - before))
"""


@pytest.mark.long
def test_imports_are_limited():
    imported = set(subprocess.check_output([sys.executable, "-c", IMPORTED], text=True).split())
    own = {f"mlflow_deploy_plugin.{name}" for name in OWN_MODULES.split()}
    own.add("mlflow_deploy_plugin")
    assert {name for name in imported if name.startswith("mlflow_deploy_plugin")} == own
    assert {name.partition(".")[0] for name in imported - own} <= sys.stdlib_module_names
