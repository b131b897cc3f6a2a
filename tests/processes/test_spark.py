"""The Spark session, where there is no Spark."""

import sys

import pytest

from mlflow_deploy_plugin.errors import NotInstalled
from mlflow_deploy_plugin.processes import spark_session


def test_without_pyspark_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyspark.sql", None)

    with pytest.raises(NotInstalled, match=r"pip install 'mlflow-onnxserve\[spark\]'"):
        spark_session()
