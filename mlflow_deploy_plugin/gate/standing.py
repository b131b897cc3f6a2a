"""Where a version stands before the gate, as its tags say: one call of the registry, nothing is computed."""

from mlflow_deploy_plugin.registry.connection import registry_client, registry_errors
from mlflow_deploy_plugin.registry.tags import Standing as Standing
from mlflow_deploy_plugin.registry.tags import standing_of as standing_of


def standing(name: str, version: str) -> Standing:
    """The last verdict on a version.

    Raises:
        NotFound: there is no such version.
        RegistryUnavailable: MLflow does not answer.
    """
    with registry_errors(f"model {name} version {version}"):
        return standing_of(registry_client().get_model_version(name, version).tags)
