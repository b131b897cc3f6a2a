import shutil
import sys

import pytest

from mlflow_deploy_plugin.contrib.spark.session import spark_session
from tests.ship.batch.conftest import model
from tests.watch.conftest import writer

__all__ = ["model", "session", "writer"]


@pytest.fixture(scope="module")
def session():
    pytest.importorskip("pyspark")
    if not shutil.which("java"):
        pytest.skip("Spark needs Java 17")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        session = spark_session("local[4]")
        yield session
        session.stop()
