"""`python -m mlflow_deploy_plugin.processes DESCRIPTOR`: a worker, started by `Worker`."""

import sys

from mlflow_deploy_plugin.processes.worker import serve

if __name__ == "__main__":
    serve(int(sys.argv[1]))
