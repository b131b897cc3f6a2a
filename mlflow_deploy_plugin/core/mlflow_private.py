"""All private names of MLflow that this package imports or replaces.

A name is imported when it is read, because mlflow-skinny has no `mlflow.server`, and
because some of the modules take a second. `tests/test_private_names.py` looks for the
names in the oldest and in the newest MLflow that setup.cfg admits.
"""

import importlib
import pkgutil
from typing import Any

NAMES = (
    "mlflow.models.model:Model._log_v2",
    "mlflow.models.utils:_Example",
    "mlflow.models.utils:_save_example",
    "mlflow.server.auth:_role_based_read_predicate",
    "mlflow.server.handlers:_add_static_prefix",
    "mlflow.server.handlers:_assert_string",
    "mlflow.server.handlers:_disable_if_artifacts_only",
    "mlflow.server.handlers:_get_artifact_repo_mlflow_artifacts",
    "mlflow.server.handlers:_get_model_registry_store",
    "mlflow.server.handlers:_get_proxied_run_artifact_destination_path",
    "mlflow.server.handlers:_get_request_message",
    "mlflow.server.handlers:_get_tracking_store",
    "mlflow.server.handlers:_get_workspace_scoped_repo_path_if_enabled",
    "mlflow.server.handlers:_get_workspace_store",
    "mlflow.server.handlers:_is_servable_proxied_run_artifact_root",
    "mlflow.server.handlers:_wrap_response",
    "mlflow.store.artifact.s3_artifact_repo:_cached_get_s3_client",
    "mlflow.tracking._model_registry:DEFAULT_AWAIT_MAX_SLEEP_SECONDS",
    "mlflow.tracking.artifact_utils:_get_root_uri_and_artifact_path",
    "mlflow.tracking.fluent:_get_experiment_id",
    "mlflow.tracking.request_header.registry:_request_header_provider_registry",
    "mlflow.utils.credentials:_get_credentials_path",
    "mlflow.utils.environment:_CONDA_ENV_FILE_NAME",
    "mlflow.utils.environment:_CONSTRAINTS_FILE_NAME",
    "mlflow.utils.environment:_PYTHON_ENV_FILE_NAME",
    "mlflow.utils.environment:_PythonEnv",
    "mlflow.utils.environment:_REQUIREMENTS_FILE_NAME",
    "mlflow.utils.environment:_process_conda_env",
    "mlflow.utils.environment:_process_pip_requirements",
    "mlflow.utils.environment:_validate_env_arguments",
    "mlflow.utils.model_utils:_validate_and_copy_code_paths",
    "mlflow.utils.model_utils:_validate_and_prepare_target_save_path",
    "mlflow.utils.rest_utils:_get_http_response_with_retries",
    "mlflow.webhooks.delivery:_create_webhook_session",
    "mlflow.webhooks.delivery:_send_webhook_request",
    "mlflow.webhooks.ssrf:_is_public_ip",
)
_PLACES = {place.replace(":", ".").rpartition(".")[2]: place for place in NAMES}


def __getattr__(name: str) -> Any:
    """Import a name. Raises AttributeError if this MLflow does not have it."""
    if name not in _PLACES:
        raise AttributeError(name)
    return pkgutil.resolve_name(_PLACES[name])


def replace(name: str, value: object) -> None:
    """Replace a name in its module, for all callers in this process."""
    module, _, _ = _PLACES[name].partition(":")
    setattr(importlib.import_module(module), name, value)
