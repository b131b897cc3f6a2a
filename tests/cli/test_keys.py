"""Tests of `onnxserve keys`: create, list, export and revoke."""

import hashlib
import json
import os
import subprocess
import sys

import pytest

from tests.support.commands import done, onnxserve, said, told
from tests.support.refusals import mentions


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path))


def test_key_is_created_listed_and_revoked():
    made = onnxserve("keys create shop --endpoint flights --expires 90d")
    assert made.stdout.startswith("onnxserve_")
    assert "store this key" in made.stderr
    other = told("keys create ops --scope read --scope admin")
    assert other["scopes"] == ["admin", "read"]
    assert other["endpoints"] is other["expires_at"] is None
    listed = done("keys list")
    rows = [line.split()[:4] for line in listed.splitlines()]
    assert ["shop", "infer", "flights", "none"] in rows
    assert "valid until " in listed
    for text in (made.stdout.strip(), other["key"]):
        assert text not in listed
        assert hashlib.sha256(text.encode()).hexdigest() not in listed
    exported = json.loads(done("keys export"))["keys"]
    assert exported[hashlib.sha256(other["key"].encode()).hexdigest()]["name"] == "ops"
    assert mentions(done("keys revoke shop --why leaked"), "shop", "revoked")
    assert [bool(key["revoked_at"]) for key in told("keys list")] == [True, False]
    assert mentions(done("audit history"), "key.create", "why: leaked")


def test_unknown_endpoint_is_a_warning():
    onnxserve("endpoint create flights")

    made = onnxserve("keys create shop --endpoint flights --endpoint fligths")

    assert made.stdout.startswith("onnxserve_")
    (warning,) = [line for line in made.stderr.splitlines() if "yet" in line]
    assert mentions(warning, "no endpoint", "'fligths'", "'flights'")


def test_limits_are_ordered_by_period():
    onnxserve("keys create shop --limit 1000000/day --limit 100/second")
    (exported,) = json.loads(done("keys export"))["keys"].values()
    assert exported["limits"] == ["100/second", "1000000/day"]
    assert "100/second, 1000000/day" in onnxserve("keys list").stdout


def test_names_are_unique_and_suggested():
    assert onnxserve("keys create shop --expires 999999d").exit_code == 0
    assert mentions(said(onnxserve("keys create shop")), "the name 'shop'")
    assert mentions(said(onnxserve("keys revoke shpo")), "'shpo'", "'shop'")


@pytest.mark.long
def test_home_is_not_writable_by_others(tmp_path):
    command = [sys.executable, "-m", "mlflow_deploy_plugin.cli", "keys", "create", "shop"]
    environment = {**os.environ, "ONNXSERVE_HOME": str(tmp_path / "home")}

    subprocess.run(command, env=environment, umask=0, capture_output=True, check=True)

    paths = [tmp_path / "home", *(tmp_path / "home").iterdir()]
    modes = {path.name: path.stat().st_mode & 0o777 for path in paths}
    assert modes == {"home": 0o755, "onnxserve.db": 0o644}
