"""`mlflow server …` in a single process, in which MLflow is already imported.

MLflow's own command starts a second process and waits for it, which costs seconds of
both cores for each server.
"""

import os
import runpy
import sys

import mlflow.server
from mlflow.cli import cli


def run_here(command, extra_env, **_):
    """Replace MLflow's function that starts `python … -m uvicorn …`."""
    os.environ.update(extra_env)
    module = command.index("-m") + 1
    sys.argv = command[module:]
    runpy.run_module(command[module], run_name="__main__", alter_sys=True)


mlflow.server._exec_cmd = run_here
cli()
