"""Deploy a registered model to a server on this machine, or update an existing
deployment.

mlflow run . -e deploy
# or: python -m projects.flight_delay.deploy --deployment flights
"""

import argparse
from typing import Any

from mlflow.deployments import get_deploy_client

from projects.command import one_line_errors

TARGET = "onnxserve"


def deploy(deployment: str, model_uri: str, workers: int) -> dict[str, Any]:
    """Create the deployment, or update it if it exists, wait until it answers, and
    return `get_deployment`.

    Raises:
        MlflowException: the model does not exist, or the server does not start; the
            message is one line.
    """
    client = get_deploy_client(TARGET)
    config = {"server.workers": workers}
    if deployment in {known["name"] for known in client.list_deployments()}:
        client.update_deployment(deployment, model_uri=model_uri, config=config)
    else:
        client.create_deployment(deployment, model_uri, config=config)
    return dict(client.get_deployment(deployment))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--deployment", default="flights", help="name of the deployment")
    parser.add_argument(
        "--model-uri",
        default="models:/flight-delay@champion",
        help="URI of the model; a stage or an alias is followed",
    )
    parser.add_argument("--workers", type=int, default=1, help="number of worker processes")
    options = parser.parse_args()
    with one_line_errors():
        deployed = deploy(options.deployment, options.model_uri, options.workers)
    print(f"{options.deployment} answers at {deployed['url']}")


if __name__ == "__main__":
    main()
