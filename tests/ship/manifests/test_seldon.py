"""Tests of specs for Seldon Core 1, with one predictor per variant, whose traffic is
the weight in the spec.
"""

from typing import Any

import kubernetes_validate
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.spec.document import load_specs
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec
from mlflow_deploy_plugin.ship.manifests.formats import FORMATS
from mlflow_deploy_plugin.ship.manifests.served import Document, Place
from tests.ship.manifests.test_kubernetes import assert_restricted
from tests.support.refusals import refused

# The fields of Seldon Core's operator/config/crd_v1 (2026-01-09), for the objects that
# onnxserve writes. When this list was written, the complete output was valid for that
# schema with unknown fields forbidden.
PREDICTOR = {"name", "annotations", "graph", "componentSpecs", "replicas", "traffic", "shadow"}
COMPONENT = {"spec", "pdbSpec", "hpaSpec"}
WITH_KEYS = {"api_keys": True}


def rendered(
    variants: dict[str, Any],
    **parts: Any,
) -> tuple[dict[str, Document], list[Document]]:
    """Return the ConfigMaps by name, and the predictors."""
    parts = {"server": WITH_KEYS, **parts}
    endpoint = EndpointSpec.model_validate({"name": "flights", "variants": variants, **parts})
    (text,) = FORMATS["seldon"](endpoint, Place("ml")).values()
    *configs, deployment = yaml.safe_load_all(text)
    assert deployment["kind"] == "SeldonDeployment"
    assert deployment["spec"]["protocol"] == "v2"
    return {config["metadata"]["name"]: config for config in configs}, deployment["spec"][
        "predictors"
    ]


CANARY = {
    "champion": {"model": "models:/x/3", "weight": 2},
    "candidate": {"model": "models:/x/4", "weight": 1},
    "next": {"model": "models:/x@next", "shadow": True},
}


def test_each_variant_is_a_predictor_with_pods_of_its_own() -> None:
    kubernetes = {
        "max_replicas": 9,
        "service_account": "s",
        "tolerations": ["a=b"],
        "node_selector": ["a=b"],
    }
    configs, predictors = rendered(
        CANARY,
        kubernetes=kubernetes,
        container={"cpus": 1, "secrets": {"A": "s/a"}},
    )
    assert [
        (
            entry["name"],
            entry["traffic"],
            entry.get("shadow", False),
        )
        for entry in predictors
    ] == [
        ("champion", 67, False),
        ("candidate", 33, False),
        ("next", 100, True),
    ]
    for predictor in predictors:
        assert predictor.keys() <= PREDICTOR
        (component,) = predictor["componentSpecs"]
        assert component.keys() <= COMPONENT
        pod = component["spec"]
        kubernetes_validate.validate(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": pod},
            "1.32",
            strict=True,
        )
        assert_restricted(pod)
        # V2 uses the same name for the model.
        assert predictor["graph"]["name"] == pod["containers"][0]["name"] == "flights"
        config = configs[pod["volumes"][0]["configMap"]["name"]]
        (served,) = load_specs(config["data"]["spec.yaml"])
        assert list(served.variants) == [predictor["name"]]
        assert served.variants[predictor["name"]].model == CANARY[predictor["name"]]["model"]
        assert not served.variants[predictor["name"]].shadow
        assert component["hpaSpec"]["maxReplicas"] == 9


@pytest.mark.long
@settings(max_examples=50)
@given(
    st.lists(
        st.integers(0, 100),
        min_size=1,
        max_size=6,
    ).filter(any)
)
def test_the_traffic_is_100_together_and_close_to_the_weights(weights: list[int]) -> None:
    _, predictors = rendered(
        {f"v{n}": {"model": "models:/x/1", "weight": value} for n, value in enumerate(weights)},
    )
    shares = [predictor["traffic"] for predictor in predictors]
    assert sum(shares) == 100
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share - 100 * weight / sum(weights)) < 1
        assert share == 0 or weight > 0


ONE = {"a": {"model": "models:/x/1"}}
SHADOW = {"model": "models:/x/2", "shadow": True}


@pytest.mark.parametrize(
    ("variants", "parts", "names"),
    [
        (ONE, {"server": {}}, ["Seldon's gateway", "all clients", "-C server.api_keys=true"]),
        (ONE, {"kubernetes": {"host": "f.example"}}, ["kubernetes.host", "Seldon"]),
        (
            {**ONE, "b": SHADOW, "c": SHADOW},
            {},
            ["variants.c.shadow", "Seldon", "b"],
        ),
        (
            {**ONE, "b": ONE["a"]},
            {"sticky": {"header": "x-user"}},
            ["sticky", "Seldon"],
        ),
        ({"Big_One": ONE["a"]}, {}, ["variants.Big_One", "lowercase letters"]),
    ],
)
def test_spec_that_seldon_cannot_serve_is_refused_in_one_line(
    variants: Document,
    parts: Document,
    names: list[str],
) -> None:
    with refused(InvalidConfig, *names):
        rendered(variants, **parts)
