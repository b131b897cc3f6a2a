"""Tags on model versions: what serving learned about a version, where the MLflow UI shows it."""

from mlflow_deploy_plugin.registry.connection import registry_client, registry_errors

ERROR_TAG = "onnxserve.error"


def tag_version(name: str, version: str, key: str, value: str) -> None:
    """Sets a tag of a registered version.

    Raises:
        NotFound: there is no such version.
        RegistryUnavailable: MLflow does not answer.
    """
    with registry_errors(f"model {name} version {version}"):
        registry_client().set_model_version_tag(name, version, key, value)
