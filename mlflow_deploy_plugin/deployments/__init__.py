"""CONTROL: the `mlflow.deployments` plugin. `client.py` translates, `lifecycle.py` decides, `backends/` act."""
