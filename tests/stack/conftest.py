"""The stack of docker/compose.yaml, started natively once for all of its tests."""

import os
import subprocess
import sys
import uuid

import boto3
import pytest
import requests

from tests.stack.native import COMPOSE, NativeStack
from tests.support.services.alert_receiver import receiver
from tests.support.services.collector import collector
from tests.support.services.postgresql import postgresql_server
from tests.support.waiting import answers


@pytest.fixture(scope="session")
def alerts():
    """The receivers of alerts from Alertmanager and the controller."""
    with receiver() as started:
        yield started


@pytest.fixture(scope="session")
def traces():
    """A small receiver of OTLP over HTTP that replaces the OpenTelemetry collector."""
    with collector() as started:
        yield started


@pytest.fixture(scope="session")
def stack(tmp_path_factory, alerts, traces):
    """Run the core and the metrics, with windows of a minute instead of an hour, and a
    log line per request.
    """
    if not os.environ.get("AWS_ENDPOINT_URL"):
        pytest.skip(
            "no S3 API is named by AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    folder = tmp_path_factory.mktemp("stack")
    bucket = f"onnxserve-{uuid.uuid4().hex[:12]}"
    stack = NativeStack(
        folder,
        outside={
            "http://minio:9000": os.environ["AWS_ENDPOINT_URL"],
            "http://otel-collector:4318": traces.endpoint,
            "host.docker.internal:9095": f"127.0.0.1:{alerts.port}",
        },
        changed={
            "s3://onnxserve/": f"s3://{bucket}/",
            "every: 1h, grace: 5m": "every: 1m, grace: 2s",
            "every: 1h\n    grace: 5m\n    labels_within: 1h": (
                "every: 1m\n    grace: 2s\n    labels_within: 20s"
            ),
            "scrape_interval: 15s, evaluation_interval: 15s": (
                "scrape_interval: 1s, evaluation_interval: 1s"
            ),
            "group_wait: 10s": "group_wait: 1s",
        },
        settings={"ONNXSERVE_LOG_REQUESTS": "true", "OTEL_SDK_DISABLED": "false"},
    )
    stack.settings["MLFLOW_HOST"] = f"{stack.addresses['nginx']}:5443"
    stack.secrets.mkdir()
    (stack.secrets / "s3_user").write_text(os.environ["AWS_ACCESS_KEY_ID"])
    (stack.secrets / "s3_password").write_text(os.environ["AWS_SECRET_ACCESS_KEY"])
    (stack.secrets / "alerts.yaml").write_text(f"urls:\n  - {alerts.url('controller')}\n")
    make = [
        sys.executable,
        str(COMPOSE.parent / "stack" / "make_secrets.py"),
        "--folder",
        str(stack.secrets),
    ]
    subprocess.run([*make, "--host", stack.addresses["nginx"]], check=True)
    password = (stack.secrets / "postgres_password").read_text()
    with postgresql_server(stack.addresses["postgres"], 5432, "onnxserve", password) as url:
        _fill_databases(url)
        try:
            _start_core(stack)
            yield stack
        finally:
            stack.end()
            made = boto3.resource("s3").Bucket(bucket)
            made.objects.all().delete()
            made.delete()


def _fill_databases(url):
    """Create the user's own database and run the scripts of its folder, like
    PostgreSQL's image.
    """
    script = (
        "CREATE DATABASE onnxserve;\n" + (COMPOSE.parent / "stack" / "databases.sql").read_text()
    )
    subprocess.run(
        ["psql", "-qX", url.replace("+psycopg", ""), "-v", "ON_ERROR_STOP=1"],
        input=script,
        text=True,
        check=True,
    )


def _start_core(stack):
    stack.start("redis")
    stack.start("mlflow")
    stack.wait_for("mlflow", lambda: answers(stack.url("mlflow", 5000, "/health")))
    stack.run("setup")
    for name in ("server-a", "server-b", "controller", "alertmanager", "prometheus"):
        stack.start(name)
    for name in ("server-a", "server-b"):
        stack.wait_for(name, lambda name=name: answers(stack.url(name, 8080, "/ping")))
    stack.wait_for("controller", lambda: answers(stack.url("controller", 9464, "/metrics")))
    stack.start("nginx")
    stack.wait_for("nginx", lambda: is_up(stack))
    for name, port in (("prometheus", 9090), ("alertmanager", 9093)):
        stack.wait_for(
            name, lambda name=name, port=port: answers(stack.url(name, port, "/-/ready"))
        )


def is_up(stack):
    try:
        return requests.get(
            f"{stack.door}/ping", verify=str(stack.secrets / "tls.crt"), timeout=5
        ).ok
    except requests.RequestException:
        return False
