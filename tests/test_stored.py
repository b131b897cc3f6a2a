"""This version reads the models, stores, specs, policies, state files and logs of every
version in `tests/stored`.
"""

import json
from datetime import datetime

import numpy as np
import pytest
import yaml
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine

from mlflow_deploy_plugin.core.registry.policy import parse_policy
from mlflow_deploy_plugin.core.spec.document import dump_spec, load_specs, load_stored_specs
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.tables import VERSION_TABLE, Base
from tests.stored import write
from tests.stored.contents import (
    as_json,
    load_dump,
    log_contents,
    model_contents,
    reference_contents,
    state_contents,
    store_contents,
)
from tests.stored.documents import reduced_to

FOLDERS = [
    path for path in sorted(write.STORED.iterdir()) if path.is_dir() and path.name != "__pycache__"
]
ROWS = (
    "endpoints",
    "events",
    "requests",
    "rollouts",
    "monitors",
    "windows",
    "alerts",
    "silences",
    "keys",
    "retrainings",
)
"""The parts of a store with a row per object."""
VALUES = ("unreadable", "served_files", "valid_keys", "changes")


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def folder(request):
    return request.param


@pytest.fixture(scope="module")
def expected(folder):
    """Return the contents of the folder, as the version
    that wrote them has read them.
    """
    return json.loads((folder / "expected.json").read_text())


@pytest.fixture(scope="module")
def store(folder, expected, tmp_path_factory):
    """Return the contents of the stored store, which this version migrates."""
    url = load_dump(folder / "store.sql", tmp_path_factory.mktemp("stored") / "store.db")
    return as_json(store_contents(url, datetime.fromisoformat(expected["now"])))


def test_stored_model_answers_are_unchanged(folder, expected):
    contents = as_json(model_contents(folder / "model", expected["examples"]))

    probabilities = contents["outputs"].pop("probabilities")
    saved = {**expected["model"], "outputs": {**expected["model"]["outputs"]}}
    np.testing.assert_allclose(probabilities, saved["outputs"].pop("probabilities"), atol=1e-5)
    assert contents["pyfunc"] == contents["outputs"]["label"]
    assert reduced_to(contents, saved) == saved


def test_stored_reference_is_unchanged(folder, expected, tmp_path):
    assert reference_contents(folder / "model", tmp_path) == expected["reference"]


def test_migrated_store_has_all_tables(folder, tmp_path):
    url = load_dump(folder / "store.sql", tmp_path / "store.db")
    open_store(url).close()

    with create_engine(url).connect() as connection:
        options = {"version_table": VERSION_TABLE, "compare_type": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, Base.metadata) == []


@pytest.mark.parametrize("part", ROWS)
def test_stored_rows_are_unchanged(part, store, expected):
    rows = expected["store"][part]

    assert rows
    assert reduced_to(store[part], rows) == rows


@pytest.mark.parametrize("part", VALUES)
def test_stored_values_are_unchanged(part, store, expected):
    assert store[part] == expected["store"][part]


@pytest.mark.parametrize("name", ["spec.yaml", "spec-providers.yaml"])
def test_stored_spec_is_unchanged(folder, name):
    text = (folder / name).read_text()
    documents = list(yaml.safe_load_all(text))

    specs = load_stored_specs(text)

    contents = [spec.model_dump(mode="json", by_alias=True) for spec in specs]
    assert reduced_to(contents, documents) == documents
    assert [load_specs(dump_spec(spec)) for spec in specs] == [[spec] for spec in specs]


def test_stored_policy_keeps_its_digest(folder, expected):
    text = (folder / "policy.yaml").read_text()
    document = yaml.safe_load(text)

    policy = parse_policy(text, "the policy")

    contents = policy.model_dump(mode="json", by_alias=True)
    assert reduced_to(contents, document) == document
    assert policy.digest == expected["policy_digest"]
    assert parse_policy(yaml.safe_dump(contents), "the policy") == policy


def test_stored_state_is_unchanged(folder, expected):
    contents = as_json(state_contents(folder / "state"))

    assert reduced_to(contents, expected["state"]) == expected["state"]
    assert {*contents["wanted"]} == {"flights", "extra"}


def test_stored_log_is_unchanged(folder, expected):
    contents = as_json(log_contents(folder / "log"))

    assert reduced_to(contents, expected["log"]) == expected["log"]
    assert len(contents["rows"]) == contents["count"] == 10


def test_stored_folder_is_never_overwritten(folder, monkeypatch):
    monkeypatch.setattr("sys.argv", ["write.py", folder.name])

    with pytest.raises(SystemExit, match="exists already"):
        write.main()
