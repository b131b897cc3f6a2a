"""The process for a model without an ONNX form reports why it cannot start."""

import os
from pathlib import Path

import numpy as np
import pytest

from mlflow_deploy_plugin.core.errors import InvalidArtifact
from mlflow_deploy_plugin.serve.pyfunc.__main__ import start_scorer
from tests.support.refusals import mentions


def test_a_pickle_that_another_version_wrote_is_refused_with_both_versions(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    (tmp_path / "MLmodel").write_text(
        "flavors: {python_function: {loader_module: mlflow.sklearn, model_path: model.pkl}}\n",
    )
    (tmp_path / "requirements.txt").write_text("mlflow==2.9.2\nnumpy==0.1\n")
    (tmp_path / "model.pkl").write_bytes(b"cnumpy\nno_such_name\n.")
    with pytest.raises(InvalidArtifact) as refused:
        start_scorer(tmp_path)
    message = str(refused.value)
    assert message.startswith("MLflow cannot load the model: AttributeError: ")
    assert message.endswith(
        f"; install the versions it was logged with: numpy 0.1 ({np.__version__} is installed)",
    )
    assert str(tmp_path) not in message


def test_the_error_of_a_missing_package_names_how_to_install_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    (tmp_path / "MLmodel").write_text(
        "flavors: {python_function: {loader_module: not_installed_here}}\n",
    )
    (tmp_path / "requirements.txt").write_text("mlflow==2.9.2\nnumpy==0.1\n")
    with pytest.raises(InvalidArtifact) as refused:
        start_scorer(tmp_path)
    message = str(refused.value)
    assert message.startswith(
        "the model needs the Python module 'not_installed_here', which is not installed here (it ",
    )
    assert mentions(message, "numpy 0.1", np.__version__, "`pip install")
    assert mentions(message, "`mlflow.pyfunc.get_model_dependencies(MODEL_URI)`")
    assert message.endswith("; to include your own modules in the model, log it with `code_paths`")
    assert str(tmp_path) not in message
