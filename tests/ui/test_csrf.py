"""The sessions of the console and their key. Forms that are refused: test_console.py."""

from pathlib import Path
from typing import Any

from flask import Flask

from mlflow_deploy_plugin.ui import csrf

PAGE = "/onnxserve"


def test_a_server_with_another_key_does_not_replace_the_cookie(mlflow_app: Any, tmp_path: Path) -> None:
    other = Flask("other")
    csrf.install(other, tmp_path / "key")
    assert len((tmp_path / "key").read_bytes()) == 32
    assert other.config["SESSION_COOKIE_NAME"] != mlflow_app.app.config["SESSION_COOKIE_NAME"]


def test_the_workers_of_a_server_share_one_key(tmp_path: Path) -> None:
    workers = [Flask("first"), Flask("second")]
    for worker in workers:
        csrf.install(worker, tmp_path / "console" / "key")
    assert workers[0].secret_key == workers[1].secret_key
    assert (tmp_path / "console" / "key").stat().st_mode & 0o077 == 0


def test_the_cookie_goes_to_this_site_alone_and_over_tls_if_it_came_so(mlflow_app: Any) -> None:
    [plain] = mlflow_app.client.get(PAGE).headers.getlist("Set-Cookie")
    [secure] = mlflow_app.client.get(PAGE, base_url="https://localhost").headers.getlist("Set-Cookie")
    assert all("HttpOnly" in cookie and "SameSite=Strict" in cookie for cookie in (plain, secure))
    assert "Secure" in secure
    assert "Secure" not in plain


def test_a_key_that_cannot_be_written_costs_only_the_sharing_between_workers(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    app = Flask("alone")
    csrf.install(app, tmp_path / "file" / "key")
    assert app.secret_key
