"""The handling of expected failures in entry points: one line on stderr and exit status
1.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.exceptions import MlflowException

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.core.messages import one_line


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the process without a traceback for expected errors of MLflow and onnxserve.
    Other errors are bugs.
    """
    try:
        yield
    except (OnnxserveError, MlflowException) as error:
        print(f"Error: {one_line(error.message)}", file=sys.stderr)
        sys.exit(1)
