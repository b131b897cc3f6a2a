"""The process that answers for a model without an ONNX form: why it cannot start."""

import os
from pathlib import Path

import pytest

from mlflow_deploy_plugin.pyfunc.__main__ import start_scorer
from mlflow_deploy_plugin.pyfunc.process import CannotStart


def test_a_package_that_is_missing_is_named_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    (tmp_path / "MLmodel").write_text("flavors: {python_function: {loader_module: not_installed_here}}\n")
    with pytest.raises(CannotStart) as refused:
        start_scorer(tmp_path)
    said = str(refused.value)
    assert said.startswith("the model needs the Python package 'not_installed_here', which is not installed here: ")
    assert "`pip install -r` the file that `mlflow.pyfunc.get_model_dependencies(MODEL_URI)` answers" in said
    assert str(tmp_path) not in said
