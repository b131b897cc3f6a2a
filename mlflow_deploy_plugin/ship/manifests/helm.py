"""An endpoint as values of the Helm chart in docker/helm/onnxserve. The values have the
fields of the spec.
"""

from collections.abc import Mapping

from mlflow_deploy_plugin.core.spec.document import spec_document
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec
from mlflow_deploy_plugin.core.spec.types import IMAGE
from mlflow_deploy_plugin.ship.manifests.kubernetes_objects import (
    SERVICE_NAME,
    kubernetes_documents,
)
from mlflow_deploy_plugin.ship.manifests.served import Document, Place, dump_documents

_NOT_OF_VALUES = ("apiVersion", "name", "monitors", "alarms")
"""The spec fields that are not in the values: the name is a key of `endpoints`; the
rest is in the store.
"""


def render(spec: EndpointSpec, place: Place) -> Mapping[str, str]:
    """Return a values file with this endpoint. The release sets the namespace. Raises
    like `kubernetes_documents`.

    The endpoint gets the variables of `place`, because other endpoints of the release
    may use other MLflow workspaces.
    """
    kubernetes_documents(spec, place)
    environment = {**place.environment, **spec.container.environment}
    placed = spec.model_copy(
        update={"container": spec.container.model_copy(update={"environment": environment})}
    )
    return {
        f"{spec.name}.values.yaml": dump_documents(
            [{"endpoints": {spec.name: _fields_of_values(spec_document(placed))}}]
        )
    }


def values_schema() -> Document:
    """Return the chart's values.schema.json, in JSON Schema's draft 7, which Helm 3 and
    4 support.
    """
    spec = EndpointSpec.model_json_schema(by_alias=True)
    parts = spec.pop("$defs")
    of_monitors = ("MonitorSpec", "RetrainSpec", "SampleSpec", "AlarmsSpec")
    definitions = {name: part for name, part in parts.items() if name not in of_monitors}
    for definition in definitions.values():
        # The description is the docstring of a class, which has line breaks.
        if "description" in definition:
            definition["description"] = " ".join(definition["description"].split())
    definitions["Endpoint"] = {
        **spec,
        "properties": _fields_of_values(spec["properties"]),
        "required": [],
    }
    endpoint = {"$ref": "#/$defs/Endpoint"}
    text = {"type": "string", "minLength": 1}
    texts = {"type": "array", "items": text}
    monitor = {"endpoint": text, "monitor": text, "schedule": text, "timeZone": text}
    properties = {
        "global": {"type": "object"},
        "defaults": endpoint,
        "endpoints": {
            "type": "object",
            "propertyNames": {"pattern": f"^{SERVICE_NAME.pattern}$"},
            "additionalProperties": {"allOf": [endpoint], "required": ["variants"]},
        },
        "objects": {"type": "array", "items": {"type": "object"}},
        "environment": {"type": "object", "additionalProperties": {"type": "string"}},
        "secret": text,
        "controller": _closed(
            {
                "enabled": {"type": "boolean"},
                "image": {"type": "string", "pattern": IMAGE},
                "imagePullSecrets": texts,
                "serviceAccount": {"type": "string"},
                "replicas": {"type": "integer", "minimum": 1},
                "metricsPort": {"type": "integer", "minimum": 1, "maximum": 65535},
                "podMonitor": {"type": "boolean"},
                "rollouts": texts,
                "resources": {"type": "object"},
            },
            required=("image", "metricsPort", "replicas"),
        ),
        "migration": _closed(
            {
                "enabled": {"type": "boolean"},
                "deadlineSeconds": {"type": "integer", "minimum": 1},
                "resources": {"type": "object"},
            }
        ),
        "monitors": {
            "type": "object",
            "propertyNames": {"pattern": "^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$"},
            "additionalProperties": _closed(monitor, required=("endpoint", "monitor", "schedule")),
        },
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        **_closed(
            properties,
            required=(
                "controller",
                "defaults",
                "endpoints",
                "environment",
                "migration",
                "objects",
                "secret",
            ),
        ),
        "$defs": definitions,
    }


def _fields_of_values(fields: Document) -> Document:
    """Return the fields of a spec that the values of the chart have."""
    return {name: value for name, value in fields.items() if name not in _NOT_OF_VALUES}


def _closed(properties: Document, required: tuple[str, ...] = ()) -> Document:
    """Return the schema of an object with only these fields. Helm removes a default if
    the value is null.
    """
    return {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "required": list(required),
    }
