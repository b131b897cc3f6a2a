"""Remove files from installed packages that no process of an image opens: `python
slim.py FOLDER`, a folder filled by pip.

| removed | MB |
|---|---|
| symbols and debugging tables of shared objects, if `strip` is installed | 72 |
| ONNX Runtime's library for C programs (Python's has its own), and its tools | 38 |
| descriptions of AWS services, except S3 and the services for logging in to it | 27 |
| Databricks' client, which MLflow imports only for a registry at Databricks | 20 |
| headers, stubs, tests, C sources, copies of Arrow's libraries, unread formats | 25 |
| parts of MLflow that train, serve and judge | 6 |
| byte code of modules that a server does not import | 12 |

`python slim.py --serve FOLDER` then removes files that are used only to wrap, judge and
train, from a serving image.

| removed | MB |
|---|---|
| sources of other packages' modules; their byte code names lines in tracebacks | 22 |
| parts of MLflow, numpy and other packages that a server does not import | 8 |
| byte code of our packages that are not used to serve | 4 |
"""

import gzip
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

UNUSED = (
    *(
        "**/tests",
        "**/*.pyi",
        "**/*.pyx",
        "**/*.pxd",
        "**/*.pxi",
        "**/*.h",
        "**/*.hpp",
        "**/*.cpp",
        "**/*.a",
    ),
    *(
        "numpy/distutils",
        "zstandard/_cffi*",
        "pyarrow/include",
        "pyarrow/src",
        "pyarrow/*flight*.so*",
    ),
    *(
        "pyarrow/_pyarrow_cpp_tests*",
        "pyarrow/*encryption*.so*",
        "pyarrow/*orc*.so",
        "pyarrow/_substrait.*",
    ),
    *(
        "pyarrow/_azurefs.*",
        "pyarrow/_gcsfs.*",
        "pyarrow/_hdfs.*",
        "pyarrow/lib[ap]*.so",
        "pyarrow/lib*.so.*.*.*",
    ),
    *("onnxruntime/capi/libonnxruntime.so.*", "onnxruntime/tools", "onnxruntime/transformers"),
    *("onnxruntime/quantization", "onnxruntime/datasets", "onnxruntime/backend"),
    *(
        "databricks/sdk",
        "databricks_sdk-*",
        "google/auth",
        "google/oauth2",
        "google_auth-*",
        "pyasn1*",
    ),
    *(
        "mlflow/assistant",
        "mlflow/demo",
        "mlflow/langchain",
        "mlflow/pyspark",
        "mlflow/sagemaker",
        "mlflow/server",
    ),
    *("mlflow/transformers", "botocore/cacert.pem"),  # certifi contains the same certificates
)
AWS = {"s3", "signin", "sso", "sso-oidc", "sts"}
IMPORTED = """
import boto3, click, contextlib, cryptography.x509, ecs_logging, flask, grpc._server, \
gunicorn.app.wsgiapp, jwt
import limits.storage, limits.strategies, mlflow.artifacts, mlflow.store.artifact.s3_artifact_repo
import opentelemetry.exporter.otlp.proto.http.trace_exporter, opentelemetry.sdk.trace.export, orjson
import pyarrow.compute, pyarrow.csv, pyarrow.parquet, redis, requests, yaml
import gunicorn.glogging, numpy.ma, numpy.typing, uvloop
import zstandard, google.protobuf.descriptor_pb2, google.protobuf.json_format, urllib3, \
packaging.requirements
import grpc._utilities, gunicorn.workers.gthread, psutil, tokenizers
boto3.client("s3", region_name="none")
mlflow.MlflowClient("http://none")
with contextlib.suppress(ImportError):  # not on Python 3.14
    import simdjson
with contextlib.suppress(ImportError):  # the extra `signing`
    import model_signing
"""
"""Modules of other packages that a server imports. Python keeps the byte code of these
modules and their imports only.
"""
NOT_SERVED = (
    # used by numpy's tests and by compilers
    *(
        "numpy/_core/_simd.*",
        "numpy/f2py",
        "cffi",
        "pycparser*",
    ),
    *("git", "GitPython-*", "gitpython-*", "gitdb*", "smmap*"),
    *("mlflow/gateway/providers", "mlflow/store/**/dbmodels", "mlflow/store/db_migrations"),
    *("mlflow/store/**/sqlalchemy_*.py", "google/api", "google/type", "google/longrunning"),
)
OURS = "mlflow_deploy_plugin"
SERVING = {"core", "serve", "cli", "contrib"}
READS_ITSELF = {"anyio"}
"""Packages that find the modules of their first use in their own sources."""


def slim(packages: Path) -> None:
    """Shrink a folder `site-packages` of any image."""
    remove(path for pattern in UNUSED for path in packages.glob(pattern))
    remove(path for path in packages.glob("boto*/data/*/") if path.name not in AWS)
    # The libraries in NAME.libs are patched by auditwheel, and stripping would break
    # their page alignment.
    objects = [path for path in packages.rglob("*.so*") if not path.parent.name.endswith(".libs")]
    if objects and shutil.which("strip"):
        subprocess.run(["strip", "--strip-unneeded", *objects], check=True)
        # Arrow's libraries require each other by name, so an unused library can be
        # empty.
        for path in packages.glob("pyarrow/libarrow_substrait.so.*"):
            subprocess.run(["as", "/dev/null", "-o", "empty.o"], check=True)
            # Objects need an executable stack by default, and glibc 2.41 and later do
            # not load such objects.
            link = ["ld", "-shared", "-z", "noexecstack", "-soname", path.name, "-o"]
            subprocess.run([*link, path, "empty.o"], check=True)


def keep_what_serves(packages: Path) -> None:
    """Shrink a folder `site-packages` of an image that only serves; byte code exists
    only for the imported modules.
    """
    remove(path for pattern in NOT_SERVED for path in packages.glob(pattern))
    # MLflow has a package for each training library.
    remove(path for path in packages.glob("mlflow/*/") if not any(path.rglob("*.pyc")))
    remove(
        path / "__pycache__"
        for path in packages.glob(f"{OURS}/*/**/")
        if path.relative_to(packages).parts[1] not in SERVING
    )
    for path in packages.glob("botocore/data/*.json"):
        Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
        path.unlink()
    for path in packages.rglob("__pycache__/*.pyc"):
        source = path.parents[1] / f"{path.name.partition('.')[0]}.py"
        if source.exists() and source.relative_to(packages).parts[0] not in {OURS, *READS_ITSELF}:
            path.rename(source.with_suffix(".pyc"))
            source.unlink()


def remove(paths: Iterable[Path]) -> None:
    """Remove files, and folders with all their contents."""
    for path in sorted(set(paths), reverse=True):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    environment = Path(sys.argv[-1])
    serves = "--serve" in sys.argv
    for folder in environment.glob("**/site-packages"):
        keep_what_serves(folder) if serves else slim(folder)
    if (python := environment / "bin" / "python").exists():
        for cache in () if serves else environment.rglob("__pycache__"):
            shutil.rmtree(cache)
        # Importing creates the byte code. Without sources, the byte code exists
        # already, and every imported module must be present.
        command: list[str | Path] = [python, *(["-B"] if serves else []), "-c", IMPORTED]
        subprocess.run(command, check=True, env={"MLFLOW_DISABLE_TELEMETRY": "true"})
