"""An endpoint for Seldon Core 1: a SeldonDeployment with one predictor per variant,
through protocol V2.

Seldon distributes the traffic, so that Seldon's tools show champion, canary and shadow.
Seldon Core 2 is not supported, because its `Server.spec.serverConfig` only accepts
MLServer or Triton.
"""

import re
from collections.abc import Mapping

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.spec.document import dump_spec
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec
from mlflow_deploy_plugin.ship.manifests.kubernetes import check_name, pod_of, spec_of_pod
from mlflow_deploy_plugin.ship.manifests.served import (
    SPEC_FILE,
    Document,
    Place,
    dump_documents,
    make_document,
    refuse_strangers,
)

_PREDICTOR = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
_NOT_OF_PODS = ("serviceAccountName", "topologySpreadConstraints")
"""The pod fields that refer to a service account or to labels, which this format does
not create.
"""


def render(spec: EndpointSpec, place: Place) -> Mapping[str, str]:
    """Return a file with all objects. Raises InvalidConfig if Seldon cannot serve the
    spec or auth is missing.
    """
    check_name(spec)
    _check(spec)
    documents: list[Document] = []
    predictors: list[Document] = []
    for name, share in _shares(spec).items():
        variant = spec.variants[name]
        single = variant.model_copy(update={"weight": 100, "shadow": False})
        served = spec.model_copy(update={"variants": {name: single}})
        data = {SPEC_FILE: dump_spec(spec_of_pod(served))}
        config_map = f"{spec.name}-{name}"
        documents.append(make_document(config_map, place, "v1", "ConfigMap", data=data))
        component = _component(spec, place, config_map)
        predictors.append(_predictor(spec, name, share, component))
    deployed = {"name": spec.name, "protocol": "v2", "transport": "rest", "predictors": predictors}
    api_version = "machinelearning.seldon.io/v1"
    documents.append(
        make_document(spec.name, place, api_version, "SeldonDeployment", spec=deployed),
    )
    return {f"{spec.name}.seldon.yaml": dump_documents(documents)}


def _predictor(spec: EndpointSpec, name: str, share: int, component: Document) -> Document:
    """Return the predictor of the variant `name`, which gets `share` percent of the
    traffic. `component` describes its pods.
    """
    predictor: Document = {
        "name": name,
        # The server itself provides V2, metrics and capture.
        "annotations": {"seldon.io/no-engine": "true"},
        "graph": {"name": spec.name, "type": "MODEL", "children": []},
        "componentSpecs": [component],
    }
    if spec.kubernetes.replicas:
        predictor["replicas"] = spec.kubernetes.replicas
    predictor["traffic"] = share
    if spec.variants[name].shadow:
        predictor["shadow"] = True
    return predictor


def _check(spec: EndpointSpec) -> None:
    """Raise InvalidConfig if Seldon Core cannot serve the endpoint."""
    refuse_strangers(spec, "Seldon's gateway")
    if spec.kubernetes.host is not None:
        raise InvalidConfig("kubernetes.host: Seldon creates its routes; remove this field")
    shadows = [name for name, variant in spec.variants.items() if variant.shadow]
    if len(shadows) > 1:
        raise InvalidConfig(
            f"variants.{shadows[1]}.shadow: Seldon supports one shadow, and {shadows[0]} is a "
            "shadow",
        )
    if spec.sticky is not None and len(spec.variants) - len(shadows) > 1:
        raise InvalidConfig(
            "sticky: Seldon distributes requests only by weight; use the format kubernetes or "
            "kserve",
        )
    if wrong := [name for name in spec.variants if not _PREDICTOR.fullmatch(name)]:
        raise InvalidConfig(
            f"variants.{wrong[0]}: the name of a predictor needs at most 32 lowercase letters, "
            "digits and -",
        )


def _component(spec: EndpointSpec, place: Place, config_map: str) -> Document:
    """Return the pod and the autoscaler of a predictor. `config_map` is the name of the
    ConfigMap with its spec.
    """
    pod = {name: value for name, value in pod_of(spec, place).items() if name not in _NOT_OF_PODS}
    (container,) = pod["containers"]
    # The node of the graph must have the same name.
    pod["containers"] = [{**container, "name": spec.name}]
    pod["volumes"] = [
        {"name": "spec", "configMap": {"name": config_map}},
        *pod["volumes"][1:],
    ]
    if spec.kubernetes.service_account is not None:
        pod["serviceAccountName"] = spec.kubernetes.service_account
    component: Document = {"spec": pod, "pdbSpec": {"maxUnavailable": 1}}
    kubernetes = spec.kubernetes
    if kubernetes.max_replicas is not None:
        # Every version of Seldon Core 1 accepts this format of a metric.
        cpu = {"name": "cpu", "targetAverageUtilization": kubernetes.target_cpu_percent}
        component["hpaSpec"] = {
            "minReplicas": kubernetes.replicas,
            "maxReplicas": kubernetes.max_replicas,
            "metrics": [{"type": "Resource", "resource": cpu}],
        }
    return component


def _shares(spec: EndpointSpec) -> dict[str, int]:
    """Return the traffic per variant in whole percent, rounded (largest remainder) to a
    sum of 100 without shadows.
    """
    weights = {
        name: variant.weight for name, variant in spec.variants.items() if not variant.shadow
    }
    total = sum(weights.values())
    shares = {name: 100 * weight // total for name, weight in weights.items()}
    by_rest = sorted(
        weights,
        key=lambda name: -(100 * weights[name] % total),
    )
    for name in by_rest[: 100 - sum(shares.values())]:
        shares[name] += 1
    return {name: shares.get(name, 100) for name in spec.variants}
