"""The `mlflow.deployments` plugin. `lifecycle.py` changes deployments, and `backends/`
run the servers.
"""
