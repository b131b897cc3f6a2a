"""The command `onnxserve`. Each noun has a module, which `commands.py` imports when the command is called."""

from mlflow_deploy_plugin.cli.commands import main

__all__ = ["main"]
