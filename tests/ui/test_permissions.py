"""The audit trail as a caller sees it who is no administrator. With MLflow's accounts: test_permissions_accounts.py."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mlflow_deploy_plugin.spec import empty_endpoint, new_endpoint
from mlflow_deploy_plugin.store import Store, open_store
from mlflow_deploy_plugin.ui import permissions


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """Asked by somebody who may read the model `open`, and no other."""
    monkeypatch.setattr(permissions, "is_administrator", lambda: False)
    monkeypatch.setattr(permissions, "may_read", lambda model: model == "open")
    opened = open_store(f"sqlite:///{tmp_path}/store.db")
    yield opened
    opened.close()


def deleted(store: Store, *models: str) -> None:
    """The endpoint `flights`, which has served these one after the other."""
    for model in models:
        spec = new_endpoint("flights", f"models:/{model}/1")
        store.replace_spec(spec) if store.endpoint("flights") else store.add_endpoint("onnxserve", spec)
    store.remove_endpoint("flights")


def is_hidden(store: Store) -> bool:
    seen = permissions.visible_events(store, store.events("flights"))
    assert len(seen) in (0, len(store.events("flights")))
    return not seen


@pytest.mark.parametrize(("models", "hidden"), [(["secret", "open"], False), (["open", "secret"], True)])
def test_of_a_deleted_endpoint_counts_what_it_served_last(store: Store, models: list[str], hidden: bool) -> None:
    deleted(store, *models)

    assert is_hidden(store) is hidden


def test_of_a_deleted_endpoint_whose_last_spec_cannot_be_read_nothing_is_shown(store: Store) -> None:
    deleted(store, "open")
    newer = "name: flights\nvariants: {champion: {model: 'models:/secret/1'}}\nsampling: often\n"
    store.record("update", endpoint="flights", detail={"spec": newer})
    store.record("delete", endpoint="flights")

    assert is_hidden(store)


@pytest.mark.parametrize(("model", "hidden"), [("open", False), ("secret", True)])
def test_of_an_endpoint_without_a_deployment_counts_what_it_served_last(store: Store, model: str, hidden: bool) -> None:
    store.add_endpoint("onnxserve", new_endpoint("flights", f"models:/{model}/1"))
    store.replace_spec(empty_endpoint("flights"))
    assert is_hidden(store) is hidden

    store.remove_endpoint("flights")
    assert is_hidden(store) is hidden


def test_an_endpoint_that_never_served_is_shown(store: Store) -> None:
    store.add_endpoint("onnxserve", empty_endpoint("flights"))

    assert not is_hidden(store)


def test_of_a_name_that_no_spec_is_known_of_nothing_is_shown(store: Store) -> None:
    store.record("rollout.end", endpoint="flights", why="version 7 of secret was worse")

    assert is_hidden(store)
