"""The Spark session of this process: Spark's own configuration says where it computes."""

import os
import sys
from typing import Any

from mlflow_deploy_plugin.errors import NotInstalled, OnnxserveError, one_line

_CONFIGURED = ("SPARK_HOME", "SPARK_CONF_DIR", "PYSPARK_SUBMIT_ARGS", "SPARK_REMOTE", "MASTER")
_ALONE = {"spark.driver.bindAddress": "127.0.0.1", "spark.driver.host": "127.0.0.1", "spark.ui.enabled": "false"}


def spark_session(master: str | None = None) -> Any:
    """Return the session that there is, or a new one.

    Args:
        master: None: what `spark-submit`, spark-defaults.conf or the environment say (SPARK_HOME, SPARK_CONF_DIR,
            PYSPARK_SUBMIT_ARGS, SPARK_REMOTE, MASTER), else this machine, which then listens on no other address.

    Raises:
        NotInstalled: pyspark is not installed.
        OnnxserveError: Spark does not start: no Java, or no such master.
    """
    try:
        from pyspark.sql import SparkSession  # an extra, and a second to import
    except ImportError:
        raise NotInstalled("engine spark needs pyspark: pip install 'mlflow-onnxserve[spark]', and Java 17") from None
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.appName("onnxserve")
    if master is None and not any(os.environ.get(name) for name in _CONFIGURED):
        master = "local[*]"
    if master:
        builder = builder.master(master)
        for name, value in _ALONE.items() if master.startswith("local") else ():
            builder = builder.config(name, value)
    try:
        return builder.getOrCreate()
    except Exception as error:  # noqa: BLE001 - of Java, of py4j and of Spark, which share no class
        raise OnnxserveError(f"Spark does not start: {one_line(error, 300)}") from None
