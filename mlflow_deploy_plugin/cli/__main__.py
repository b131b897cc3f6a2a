"""Entry point of `python -m mlflow_deploy_plugin.cli`, which runs `onnxserve` with a
specific interpreter.
"""

from mlflow_deploy_plugin.cli.entry import main

main()
