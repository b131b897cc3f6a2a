"""The command `onnxserve`. `commands.py` imports the module of a command on demand."""

from mlflow_deploy_plugin.cli.commands import main

__all__ = ["main"]
