"""The wording of the errors for specs that cannot be rendered."""

import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.ship.manifests.formats import FORMATS
from mlflow_deploy_plugin.ship.manifests.served import Place

MODEL = "models:/x/1"


@pytest.mark.parametrize(
    ("form", "model", "config", "message"),
    [
        (
            "kubernetes",
            MODEL,
            {"kubernetes.host": "f.example"},
            (
                "without auth, all clients that reach kubernetes.host f.example could use the "
                "endpoint: set -C server.api_keys=true or -C server.jwt_issuer=…; or -C "
                "server.insecure=true if a proxy authenticates the clients"
            ),
        ),
        (
            "kubernetes",
            MODEL,
            {"kubernetes.max_replicas": "9"},
            "kubernetes.max_replicas scales by CPU: set container.cpus, the cores per pod",
        ),
        (
            "kubernetes",
            MODEL,
            {"kubernetes.max_replicas": "3", "container.cpus": "1"},
            "kubernetes: max_replicas 3 must exceed replicas 3, which must be at least 1",
        ),
        (
            "kubernetes",
            MODEL,
            {"kubernetes.tls_secret": "t"},
            "kubernetes: tls_secret requires `host`, which is not set",
        ),
        (
            "kubernetes",
            MODEL,
            {"container.secrets.A": "store"},
            "container.secrets.A: SECRET/KEY is expected on Kubernetes (got 'store')",
        ),
        (
            "kubernetes",
            MODEL,
            {"kubernetes.service_monitor_key": "prometheus/key"},
            "kubernetes: service_monitor_key requires `service_monitor`, which is not set",
        ),
        (
            "compose",
            MODEL,
            {"server.host": "0.0.0.0"},
            (
                "without auth, all clients that reach server.host 0.0.0.0 could use the endpoint: "
                "set -C server.api_keys=true or -C server.jwt_issuer=…; or -C server.insecure=true "
                "if a proxy authenticates the clients"
            ),
        ),
        (
            "compose",
            "models/flights",
            {},
            "variants.flights.model: an absolute path is expected, not 'models/flights'",
        ),
        (
            "kserve",
            MODEL,
            {"kubernetes.host": "f.example", "server.api_keys": "true"},
            "kubernetes.host: KServe creates host names and gateways; remove this field",
        ),
    ],
)
def test_the_message_of_a_refusal(form, model, config, message):
    with pytest.raises(InvalidConfig) as refused:
        FORMATS[form](new_endpoint("flights", model, config), Place("ml"))
    assert str(refused.value) == message
