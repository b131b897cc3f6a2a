"""Tests of `onnxserve keys`: create, list and revoke."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from mlflow_deploy_plugin.cli.commands import main
from tests.support.refusals import mentions


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path))


def keys(*arguments):
    return CliRunner().invoke(main, ["keys", *arguments])


def test_a_key_is_printed_once_listed_and_revoked():
    assert mentions(keys("list").stdout, "`onnxserve keys create NAME`")
    made = keys("create", "shop", "--endpoint", "flights", "--expires", "90d")
    assert made.stdout.startswith("onnxserve_")
    assert "store this key" in made.stderr
    other = json.loads(
        keys("create", "ops", "--scope", "read", "--scope", "admin", "-o", "json").stdout
    )
    assert other["scopes"] == ["admin", "read"]
    assert other["endpoints"] is None
    assert other["expires_at"] is None
    listed = keys("list").stdout
    assert ["shop", "infer", "flights", "none"] in [
        line.split()[:4] for line in listed.splitlines()
    ]
    assert "valid until " in listed
    for text in (made.stdout.strip(), other["key"]):
        assert text not in listed
        assert hashlib.sha256(text.encode()).hexdigest() not in listed
    exported = json.loads(keys("export").stdout)["keys"]
    assert exported[hashlib.sha256(other["key"].encode()).hexdigest()]["name"] == "ops"
    assert mentions(keys("revoke", "shop", "--why", "leaked").stdout, "shop", "revoked")
    assert [bool(key["revoked_at"]) for key in json.loads(keys("list", "-o", "json").stdout)] == [
        True,
        False,
    ]
    history = CliRunner().invoke(main, ["audit", "history"]).output
    assert "key.create" in history
    assert "why: leaked" in history


def test_a_key_for_an_endpoint_that_is_not_known_yet_is_made_with_a_warning():
    CliRunner().invoke(main, ["endpoint", "create", "flights"])

    made = keys("create", "shop", "--endpoint", "flights", "--endpoint", "fligths")

    assert made.stdout.startswith("onnxserve_")
    assert [line for line in made.stderr.splitlines() if "fligths" in line] == [
        "the store has no endpoint 'fligths' yet; did you mean 'flights'?"
    ]
    assert "'flights' yet" not in made.stderr


def test_limits_go_to_servers_with_the_shortest_period_first():
    keys("create", "shop", "--limit", "1000000/day", "--limit", "100/second")
    (exported,) = json.loads(keys("export").stdout)["keys"].values()
    assert exported["limits"] == ["100/second", "1000000/day"]
    assert "100/second, 1000000/day" in keys("list").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "names"),
    [
        (["create", "shop"], 1, ["the name 'shop'"]),
        (["create", "a b"], 1, ["letters, digits"]),
        (["create", "x", "--endpoint", "a/b"], 1, ["letters, digits"]),
        (["create", "x", "--scope", "write"], 2, ["'write'", "'infer', 'read', 'admin'"]),
        (["create", "x", "--expires", "soon"], 2, ["--expires", "'soon'", "30s"]),
        (["create", "x", "--expires", "999999d"], 0, []),
        (["create", "x", "--limit", "lots"], 2, ["--limit lots", "100/second"]),
        (["revoke", "shpo"], 1, ["'shpo'", "'shop'"]),
    ],
)
def test_invalid_arguments_give_one_clear_message(arguments, code, names):
    keys("create", "shop")
    result = keys(*arguments)
    assert result.exit_code == code
    assert mentions(result.output, *names)


@pytest.mark.long
def test_files_in_the_home_are_never_writable_by_others_whatever_the_umask(tmp_path):
    command = [sys.executable, "-m", "mlflow_deploy_plugin.cli", "keys", "create", "shop"]
    environment = {**os.environ, "ONNXSERVE_HOME": str(tmp_path / "home")}

    subprocess.run(command, env=environment, umask=0, capture_output=True, check=True)

    modes = {
        path.name: path.stat().st_mode & 0o777
        for path in [tmp_path / "home", *(tmp_path / "home").iterdir()]
    }
    assert modes == {"home": 0o755, "onnxserve.db": 0o644}
