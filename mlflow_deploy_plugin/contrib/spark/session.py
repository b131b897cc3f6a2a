"""The Spark session of this process, which uses the master from Spark's
configuration.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotInstalled, OnnxserveError
from mlflow_deploy_plugin.core.messages import one_line

if TYPE_CHECKING:
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

_CONFIGURED = ("SPARK_HOME", "SPARK_CONF_DIR", "PYSPARK_SUBMIT_ARGS", "SPARK_REMOTE", "MASTER")
_ALONE = {
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    # Limit JIT compilation: our tasks run in Python, and full compilation took half of
    # a small batch's CPU time.
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1",
}
NO_CONNECT = (
    "a batch needs Spark's own session, not Spark Connect: specify a master such as "
    "spark://host:7077"
)


def spark_session(master: str | None = None) -> "SparkSession":
    """Return the current session or a new session. If `master` is None, use the master
    of `spark-submit`, spark-defaults.conf or the environment (SPARK_HOME,
    SPARK_CONF_DIR, PYSPARK_SUBMIT_ARGS, SPARK_REMOTE, MASTER). Without any
    configuration, run Spark on this machine, with ports only on 127.0.0.1. Raises as
    `spark_context`.
    """
    with _starting():
        from pyspark.sql import SparkSession  # This import needs an extra and takes a second.

        builder = SparkSession.builder
        for name, value in _settings(master).items():
            builder = builder.config(name, value)
        return builder.getOrCreate()


def spark_context() -> "SparkContext":
    """Return the current context, or a new context with the master of `spark_session`.
    A context starts in half the time of a session. Raises InvalidConfig for Spark
    Connect (which lacks contexts), NotInstalled without pyspark, and OnnxserveError if
    Spark does not start (for example, without Java or with an unknown master).
    """
    if any(os.environ.get(name) for name in ("SPARK_REMOTE", "SPARK_CONNECT_MODE_ENABLED")):
        raise InvalidConfig(NO_CONNECT)
    with _starting():
        from pyspark import SparkConf, SparkContext  # This import needs an extra.

        return SparkContext.getOrCreate(SparkConf().setAll(list(_settings(None).items())))


def _settings(master: str | None) -> dict[str, str]:
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    if master is None and not any(os.environ.get(name) for name in _CONFIGURED):
        master = "local[*]"
    settings = {"spark.app.name": "onnxserve"}
    if master:
        settings["spark.master"] = master
        if master.startswith("local"):
            settings |= _ALONE
    return settings


@contextmanager
def _starting() -> Iterator[None]:
    try:
        yield
    except ImportError:
        raise NotInstalled(
            "engine spark needs pyspark: pip install 'mlflow-onnxserve[spark]', and Java 17",
        ) from None
    except Exception as error:  # noqa: BLE001 - Java, py4j and Spark raise unrelated classes
        raise OnnxserveError(f"Spark does not start: {one_line(error, 300)}") from None
