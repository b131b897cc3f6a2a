"""The page `/onnxserve`."""

from flask import Flask

from mlflow_deploy_plugin.settings import Settings


def install(app: Flask, settings: Settings) -> None:
    """Adds the console to MLflow's Flask app."""
