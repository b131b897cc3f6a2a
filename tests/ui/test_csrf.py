"""Forms that are refused, and the sessions of the console with their key."""

from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from mlflow_deploy_plugin.ui import csrf
from tests.support.console import PAGE, form, open_page


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_form_of_another_site_is_refused(mlflow_app: Any, endpoint: str, headers: dict[str, str]) -> None:
    browser, _, token = open_page(mlflow_app)
    answer = browser.post(f"{PAGE}/act", data=form(endpoint, token), headers=headers)
    assert answer.status_code == 403
    assert "the form was sent from another site" in answer.get_data(as_text=True)


def test_a_name_that_leads_here_for_the_moment_gets_neither_the_page_nor_its_token(
    mlflow_app: Any, endpoint: str
) -> None:
    """MLflow's own check of Host, which it makes for what is ours too."""
    browser, _, token = open_page(mlflow_app)
    headers = {"Host": "evil.example", "Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"}
    assert browser.get(PAGE, headers=headers).status_code == 403
    assert browser.post(f"{PAGE}/act", data=form(endpoint, token), headers=headers).status_code == 403


@pytest.mark.parametrize("token", ["", "0" * 64])
def test_a_form_without_its_token_is_refused(mlflow_app: Any, endpoint: str, token: str) -> None:
    browser, _, _ = open_page(mlflow_app)
    answer = browser.post(f"{PAGE}/act", data=form(endpoint, token))
    assert answer.status_code == 403
    assert "load it again" in answer.get_data(as_text=True)


def test_the_token_of_one_browser_is_not_that_of_another(mlflow_app: Any, endpoint: str) -> None:
    _, _, token = open_page(mlflow_app)
    other, _, _ = open_page(mlflow_app)
    assert other.post(f"{PAGE}/act", data=form(endpoint, token)).status_code == 403


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
