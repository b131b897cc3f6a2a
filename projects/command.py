"""What the entry points have in common: an expected failure is one line on stderr and exit status 1."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.exceptions import MlflowException

from mlflow_deploy_plugin.errors import OnnxserveError


@contextmanager
def plain_errors() -> Iterator[None]:
    """Errors that MLflow and onnxserve raise on purpose end the process without a traceback; others are bugs."""
    try:
        yield
    except (OnnxserveError, MlflowException) as error:
        print(f"Error: {error.message}", file=sys.stderr)
        sys.exit(1)
