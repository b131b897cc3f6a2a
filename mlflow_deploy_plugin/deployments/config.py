"""What people say of an endpoint, as its spec: fields, shares of the traffic, models in folders of theirs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow_deploy_plugin.deployments.monitors import absolute_datasets
from mlflow_deploy_plugin.deployments.projects import absolute_projects
from mlflow_deploy_plugin.deployments.traffic import expand_traffic
from mlflow_deploy_plugin.registry.model_uri import parse_model_uri
from mlflow_deploy_plugin.spec import EndpointSpec, apply_config, load_time_zone


def configure(spec: EndpointSpec, config: Mapping[str, Any]) -> EndpointSpec:
    """`spec` with what `config` says.

    Raises:
        InvalidConfig: a name or a value cannot be, a time zone is not known, or a project that trains is not where it
            is said to be.
    """
    fields = expand_traffic(spec, config)
    models = {name: uri for name, uri in fields.items() if name.startswith("variants.") and name.endswith(".model")}
    changed = apply_config(spec, {**fields, **{name: absolute_model_uri(str(uri)) for name, uri in models.items()}})
    for name, value in config.items():
        if name.startswith("monitors.") and name.endswith(".time_zone") and value:
            load_time_zone(value)
    whole = {**absolute_projects(changed, config), **absolute_datasets(changed, config)}
    return apply_config(changed, whole) if whole else changed


def absolute_model_uri(model_uri: str) -> str:
    """A folder by its whole path: the server does not run where the command is typed."""
    reference = parse_model_uri(model_uri)
    if reference.kind != "path":
        return model_uri
    return str(Path(reference.name).expanduser().absolute())
