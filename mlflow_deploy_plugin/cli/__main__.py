"""`python -m mlflow_deploy_plugin.cli`: the command `onnxserve`, for a given interpreter."""

from mlflow_deploy_plugin.cli import main

main(prog_name="onnxserve")
