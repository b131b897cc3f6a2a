"""Loads and unloads are refused from web pages of other sites."""

import pytest

from mlflow_deploy_plugin.core.errors import CallerRefused, UnsupportedMediaType
from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.serve.http.views import check_same_site
from mlflow_deploy_plugin.serve.messages import RawRequest

SPEC = ServerSpec.model_validate({"host": "Gpu-1", "allowed_hosts": "Flights.svc,models.example"})

OURS = """
127.0.0.1:8080 10.1.2.3 [::1]:8080 [fd00::1] localhost:1 LOCALHOST
localhost. gpu-1:80 flights.svc:8 MODELS.example
"""

FOREIGN = """
: evil.example localhost.evil.example 127.0.0.1.evil.example gpu-1.evil.example gpu-1@evil \
0x7f.1 [1.2]
[] 1.2.3.4.5 10.evil.example evil.flights.svc 127.0.0.1:8080@evil.example \
localhost:8080@evil.example
"""


def check(**headers):
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    check_same_site(RawRequest("POST", "/v2/repository/models/x/load", fields, b""), SPEC)


@pytest.mark.parametrize("host", OURS.split())
def test_name_of_server_is_accepted(host):
    check(host=host)
    check(host=host, content_type="application/json; charset=utf-8")
    check(host=host, content_type="application/json", origin=f"http://{host}")
    check(host=host, origin=f"https://{host.upper()}")


@pytest.mark.parametrize("host", FOREIGN.split())
def test_rebound_name_is_refused(host):
    with pytest.raises(CallerRefused, match=r"server\.allowed_hosts"):
        check(host=host, origin=f"http://{host}")


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "http://evil.example",
        "http://localhost",
        "http://localhost:80800",
        "http://[",
        "localhost:8080",
    ],
)
def test_foreign_origin_is_refused(origin):
    with pytest.raises(CallerRefused, match="may not change"):
        check(host="localhost:8080", origin=origin)


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", ""],
)
def test_content_type_without_preflight_is_refused(kind):
    with pytest.raises(UnsupportedMediaType):
        check(host="localhost", content_type=kind)
