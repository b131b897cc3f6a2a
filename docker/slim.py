"""Take out of installed packages what no process of an image opens: `python slim.py FOLDER`, which pip has filled.

| what goes | MB |
|---|---|
| symbols and debugging tables of shared objects, where there is a `strip` | 72 |
| ONNX Runtime's library for C programs (Python's holds its own), and its tools | 38 |
| descriptions of AWS services other than S3 and those that log in to it | 27 |
| Databricks' client, which MLflow imports for a registry at Databricks alone | 20 |
| headers, stubs, tests, sources in C, second copies of Arrow's libraries, and formats that we do not read | 25 |
| parts of MLflow that train, serve and judge | 6 |
| byte code of modules that a server does not import | 12 |
"""

import shutil
import subprocess
import sys
from pathlib import Path

UNUSED = (
    *("**/tests", "**/*.pyi", "**/*.pyx", "**/*.pxd", "**/*.pxi", "**/*.h", "**/*.hpp", "**/*.cpp", "**/*.a"),
    *("numpy/distutils", "zstandard/_cffi*", "pyarrow/include", "pyarrow/src", "pyarrow/*flight*.so*"),
    *("pyarrow/_pyarrow_cpp_tests*", "pyarrow/*encryption*.so*", "pyarrow/*orc*.so", "pyarrow/_substrait.*"),
    *("pyarrow/_azurefs.*", "pyarrow/_gcsfs.*", "pyarrow/_hdfs.*", "pyarrow/lib[ap]*.so", "pyarrow/lib*.so.*.*.*"),
    *("onnxruntime/capi/libonnxruntime.so.*", "onnxruntime/tools", "onnxruntime/transformers"),
    *("onnxruntime/quantization", "onnxruntime/datasets", "onnxruntime/backend"),
    *("databricks/sdk", "databricks_sdk-*", "google/auth", "google/oauth2", "google_auth-*", "pyasn1*"),
    *("mlflow/assistant", "mlflow/demo", "mlflow/langchain", "mlflow/pyspark", "mlflow/sagemaker", "mlflow/server"),
    "mlflow/transformers",
)
AWS = {"s3", "signin", "sso", "sso-oidc", "sts"}
IMPORTED = """
import boto3, click, cryptography.x509, ecs_logging, flask, grpc, gunicorn.app.wsgiapp, gunicorn.workers.gthread, jwt
import limits.storage, limits.strategies, mlflow.artifacts, mlflow.store.artifact.s3_artifact_repo, numpy.random
import opentelemetry.exporter.otlp.proto.http.trace_exporter, opentelemetry.sdk.trace.export, orjson
import prometheus_client.multiprocess, pyarrow.compute, pyarrow.csv, pyarrow.parquet, redis, requests, simdjson, yaml
import gunicorn.glogging, lazy_loader, numpy.typing, uvicorn.lifespan.off, uvicorn.loops.uvloop, uvicorn_worker
import zstandard, google.protobuf.descriptor_pb2, google.protobuf.json_format, urllib3, packaging.requirements
boto3.client("s3", region_name="none")
mlflow.MlflowClient("http://none")
"""
"""Modules of others that a server imports. Python keeps the byte code of what these bring, and of nothing else."""


def slim(packages: Path) -> None:
    """Shrink one folder `site-packages`."""
    unused = {path for pattern in UNUSED for path in packages.glob(pattern)}
    unused |= {path for path in packages.glob("boto*/data/*/") if path.name not in AWS}
    for path in sorted(unused, reverse=True):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    # those in NAME.libs were patched by auditwheel: a stripped one is not page-aligned any more
    objects = [path for path in packages.rglob("*.so*") if not path.parent.name.endswith(".libs")]
    if objects and shutil.which("strip"):
        subprocess.run(["strip", "--strip-unneeded", *objects], check=True)


if __name__ == "__main__":
    environment = Path(sys.argv[1])
    for folder in environment.glob("**/site-packages"):
        slim(folder)
    if (python := environment / "bin" / "python").exists():
        for cache in environment.rglob("__pycache__"):
            shutil.rmtree(cache)
        subprocess.run([python, "-c", IMPORTED], check=True, env={"MLFLOW_DISABLE_TELEMETRY": "true"})
