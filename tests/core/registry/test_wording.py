"""The wording of the errors for models that are missing in the registry or cannot be
read.
"""

from pathlib import Path
from typing import Any

import pytest

from mlflow_deploy_plugin.core.errors import OnnxserveError, RegistryUnavailable
from mlflow_deploy_plugin.core.registry.connection import registry_errors
from mlflow_deploy_plugin.core.registry.model_files import download
from mlflow_deploy_plugin.core.registry.resolution import registered_version, resolve
from tests.support.tracking import tracking_at


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (
            "models:/x",
            (
                "'models:/x' does not select a version; the model is a registered model "
                "(models:/NAME@ALIAS, models:/NAME/Production, models:/NAME/tag:KEY=VALUE, "
                "models:/NAME/3, models:/NAME/latest), a logged model (models:/m-…), a run's "
                "artifact (runs:/RUN_ID/PATH), an artifact store's URI (s3://…) or a folder"
            ),
        ),
        (
            "models:/../flights/1",
            "'models:/../flights/1' is a folder, not a registered model; use the path ../flights/1",
        ),
        (
            "http://h:5000/#/models/flights",
            (
                "a model cannot be fetched from the web address http://h:5000/: if MLflow runs "
                "there, set MLFLOW_TRACKING_URI=http://h:5000 and use models:/flights/VERSION; "
                "otherwise use a folder or s3://…"
            ),
        ),
        (
            "models:/tiny/9",
            (
                "model tiny has no version 9; versions: 1 (Production), 2 (Production, @live), 3 "
                "(None)"
            ),
        ),
        (
            "models:/tiny/Staging",
            (
                "model tiny has no version in stage Staging; versions: 1 (Production), 2 "
                "(Production, @live), 3 (None)"
            ),
        ),
        (
            "models:/tiny@dead",
            (
                "model tiny has no alias dead; versions: 1 (Production), 2 (Production, @live), 3 "
                "(None)"
            ),
        ),
        (
            "models:/tiny/champion",
            (
                "models:/tiny/champion: 'champion' is neither a version, `latest` nor a stage "
                "(Production, Staging, Archived, None); for an alias use models:/tiny@champion, "
                "for a tag models:/tiny/tag:KEY=VALUE"
            ),
        ),
        ("models:/empty/latest", "model empty has no version; it does not have any versions"),
        ("/no/such/folder", "the folder /no/such/folder does not exist"),
    ],
)
def test_the_message_of_a_uri_that_leads_nowhere(store: Any, uri: str, message: str) -> None:
    with pytest.raises(OnnxserveError) as refused:
        resolve(uri)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("file:///no/such", "the folder /no/such of the model's files does not exist"),
        (
            "foo:/bar",
            (
                "the files of foo:/bar: MLflow has no artifact store for foo:…; s3, gs and other "
                "schemes are supported"
            ),
        ),
        (
            "model:/flights/1",
            (
                "the files of model:/flights/1: MLflow has no artifact store for model:…; did you "
                "mean 'models'?"
            ),
        ),
    ],
)
def test_the_message_of_files_that_cannot_be_fetched(
    tmp_path: Path,
    location: str,
    message: str,
) -> None:
    with pytest.raises(OnnxserveError) as refused:
        download(location, tmp_path)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "/srv/model",
            (
                "'/srv/model' is not the name of a registered model; mlflow.register_model "
                "registers the model in a folder"
            ),
        ),
        (
            "models:/tiny/2",
            (
                "'models:/tiny/2' is not the name of a registered model; use the name and the "
                "version: tiny 2"
            ),
        ),
    ],
)
def test_the_message_of_a_name_that_is_none(name: str, message: str) -> None:
    with pytest.raises(OnnxserveError) as refused:
        registered_version(name, "1")
    assert str(refused.value) == message


def test_the_message_of_an_outage() -> None:
    message = "model x: MLflow at http://m does not answer correctly: connection refused"
    with (
        tracking_at("http://m"),
        pytest.raises(RegistryUnavailable) as refused,
        registry_errors("model x"),
    ):
        raise ConnectionRefusedError("Connection refused")
    assert str(refused.value) == message
