"""The command `onnxserve`. Each group of commands has a module, which `commands.py` imports on demand."""

from mlflow_deploy_plugin.cli.commands import main

__all__ = ["main"]
