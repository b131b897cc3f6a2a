"""`mlflow run` as users type it, with this environment's commands on PATH."""

import os
import subprocess
import sys
from itertools import chain
from pathlib import Path


def parameter_options(parameters):
    """Return the options of these parameters of an entry point."""
    pairs = (("-P", f"{name}={value}") for name, value in parameters.items())
    return [*chain.from_iterable(pairs)]


def mlflow_run(project, *options, cwd, **variables):
    """Run a project with these variables, and return its ended process."""
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **variables}
    return subprocess.run(
        [sys.executable, "-m", "mlflow", "run", str(project), *options],
        env=os.environ | environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
