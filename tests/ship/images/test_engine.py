"""Tests of Docker's errors as one-line messages, and of the login to ECR."""

import base64
import os
import signal
import threading

import pytest

from mlflow_deploy_plugin.core.errors import BuildFailed, NotInstalled, Unauthenticated
from mlflow_deploy_plugin.ship.images import engine
from mlflow_deploy_plugin.ship.images.context import BuildContext
from tests.support.refusals import mentions
from tests.support.waiting import wait_until

REGISTRY = "123456789012.dkr.ecr.eu-central-1.amazonaws.com"


def test_missing_docker_command_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotInstalled, match="docker command"):
        engine.image_fields("x")


def command(folder, script, monkeypatch):
    """Put a script `docker` first on PATH, which prints the output of an engine."""
    (folder / "docker").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "Got permission denied while trying to connect to the Docker daemon socket",
            "Got permission denied while trying to connect to the Docker daemon socket",
        ),
        (
            "#7 2.101 ERROR: No matching distribution found for x\n"
            "------\n"
            "ERROR: failed to solve: exit code: 1",
            "ERROR: No matching distribution found for x; ERROR: failed to solve: exit code: 1",
        ),
        ("", "docker ended with status 1"),
    ],
)
def test_failed_build_ends_with_the_last_lines(words, message, tmp_path, monkeypatch):
    (tmp_path / "words").write_text(words)
    command(tmp_path, f"cat > /dev/null; cat {tmp_path}/words; exit 1", monkeypatch)
    seen = []
    with pytest.raises(BuildFailed) as raised:
        engine.build(BuildContext("FROM scratch\n", {}), "flights:3", seen.append)
    assert mentions(raised.value.message, "flights:3", message)
    assert seen == words.splitlines()


def test_image_kept_by_the_builder_is_an_error(tmp_path, monkeypatch):
    # The script does not list any images.
    command(tmp_path, "[ $1 = build ] && cat > /dev/null; true", monkeypatch)
    with pytest.raises(BuildFailed, match=r"flights:3 .*BUILDX_BUILDER"):
        engine.build(BuildContext("FROM scratch\n", {}), "flights:3", lambda line: None)


def follow(line):
    """Ignore a line of the output."""


@pytest.mark.parametrize("report", [None, follow])
def test_interrupted_command_ends(report, tmp_path, monkeypatch):
    command(
        tmp_path,
        f"echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; exec sleep 60",
        monkeypatch,
    )
    main = threading.get_ident()

    def interrupt():
        wait_until((tmp_path / "pid").exists, 30, "the command runs")
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        engine.docker("run", what="x", report=report)
    thread.join()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


class _Ecr:
    """A botocore stub of an ECR client whose registry has the repository `known`."""

    def __init__(self, monkeypatch):
        import boto3
        from botocore.stub import Stubber

        client = boto3.client(
            "ecr", region_name="eu-central-1", aws_access_key_id="k", aws_secret_access_key="s"
        )
        self.stub = Stubber(client)
        self.stub.activate()
        monkeypatch.setattr(boto3, "client", lambda service, region_name: client)


def test_ecr_login_and_missing_repository(tmp_path, monkeypatch):
    digest = "sha256:" + "ab" * 32
    echo = f'echo "3: digest: {digest} size: 1"'
    script = f'echo "$@" >> {tmp_path}/log; [ $1 = login ] && cat >> {tmp_path}/log; {echo}'
    command(tmp_path, script, monkeypatch)
    stub = _Ecr(monkeypatch).stub
    token = base64.b64encode(b"AWS:s3cret").decode()
    response = {"authorizationData": [{"authorizationToken": token}]}
    stub.add_response("get_authorization_token", response, {"registryIds": ["123456789012"]})
    stub.add_client_error("describe_repositories", "RepositoryNotFoundException")
    made = {"registryId": "123456789012", "repositoryName": "ml/flights"}
    stub.add_response("create_repository", {"repository": {}}, made)

    # The stand-in for docker returns this digest.
    assert engine.push_image(f"{REGISTRY}/ml/flights:3", lambda line: None) == digest
    stub.assert_no_pending_responses()
    log = (tmp_path / "log").read_text()
    assert [line.split() for line in log.splitlines()] == [
        ["login", "--username", "AWS", "--password-stdin", REGISTRY],
        ["s3cretpush", f"{REGISTRY}/ml/flights:3"],
    ]


def test_refused_aws_credentials_are_named(monkeypatch):
    _Ecr(monkeypatch).stub.add_client_error(
        "get_authorization_token", "UnrecognizedClientException", "token invalid"
    )
    with pytest.raises(Unauthenticated, match=r"ECR.*eu-central-1.*token invalid"):
        engine.push_image(f"{REGISTRY}/flights:3", lambda line: None)


def test_refused_push_names_image_and_reason(tmp_path, monkeypatch):
    command(
        tmp_path, "echo denied: requested access to the resource is denied; exit 1", monkeypatch
    )
    with pytest.raises(BuildFailed, match=r"ghcr\.io/a/b:3 .*denied"):
        engine.push_image("ghcr.io/a/b:3", lambda line: None)
