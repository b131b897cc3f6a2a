"""The errors without a working Spark installation."""

import sys

import pytest

from mlflow_deploy_plugin.contrib.spark.session import spark_context, spark_session
from mlflow_deploy_plugin.core.errors import NotInstalled


@pytest.mark.parametrize("start", [spark_session, spark_context])
def test_missing_pyspark_error_names_extra(start, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyspark", None)
    monkeypatch.setitem(sys.modules, "pyspark.sql", None)

    with pytest.raises(NotInstalled, match=r"pip install 'mlflow-onnxserve\[spark\]'"):
        start()
