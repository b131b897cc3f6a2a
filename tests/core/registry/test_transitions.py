"""Tests of moving a reference to another version,
and of finding the previous version.
"""

from itertools import count
from threading import Barrier, Event, Thread, local

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND, NOT_IMPLEMENTED, PERMISSION_DENIED

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound
from mlflow_deploy_plugin.core.registry.model_uri import parse_model_uri
from mlflow_deploy_plugin.core.registry.transitions import (
    ROLLED_BACK_TAG,
    current_version,
    move_version,
    parse_stage_or_alias,
    previous_in_registry,
    was_rolled_back,
)
from tests.support.refusals import refused
from tests.support.services.postgresql import postgresql_server
from tests.support.tracking import tracking_at

_numbers = count()


@pytest.fixture(params=["moved"])
def model(store, request):
    """Yield a registered model with versions 1, 2 and 3, without stages."""
    name = f"{request.param}-{next(_numbers)}"
    client = MlflowClient()
    client.create_registered_model(name)
    for _ in range(3):
        client.create_model_version(
            name, f"models:/{store.model_id}", store.run_id, model_id=store.model_id
        )
    yield name
    client.delete_registered_model(name)


def stages(name):
    return [
        MlflowClient().get_model_version(name, version).current_stage for version in ("1", "2", "3")
    ]


@pytest.mark.parametrize("selector", ["/Production", "/production", "@live", "/tag:team=blue"])
def test_followed_reference_moves_forward_and_back(model, selector):
    reference = parse_model_uri(f"models:/{model}{selector}")

    versions = [current_version(reference)]
    for version in ("1", "3", "3", "2"):
        move_version(reference, version)
        versions.append(current_version(reference))

    assert versions == ["", "1", "3", "3", "2"]


@pytest.mark.parametrize("model", ["moved", "eva's", 'a "b"'], indirect=True)
def test_of_a_stage_the_others_are_archived_also_the_newer(model):
    reference = parse_model_uri(f"models:/{model}/Production")
    client = MlflowClient()
    for version in ("2", "3"):
        client.transition_model_version_stage(model, version, "Production")

    move_version(reference, "2")

    assert stages(model) == ["None", "Production", "Archived"]


@pytest.mark.parametrize(("ours", "theirs"), [("2", "3"), ("3", "2")])
@pytest.mark.parametrize("is_ours_last", [True, False])
@pytest.mark.parametrize("selector", ["/Production", "/tag:team=blue"])
def test_of_two_clients_that_move_at_once_one_wins(
    model, selector, is_ours_last, ours, theirs, monkeypatch
):
    reference = parse_model_uri(f"models:/{model}{selector}")
    move_version(reference, "1")
    name = (
        "transition_model_version_stage" if reference.kind == "stage" else "set_model_version_tag"
    )
    move = getattr(MlflowClient, name)

    def move_while_they_do(*arguments):
        monkeypatch.undo()
        if is_ours_last:
            move_version(reference, theirs)
        move(*arguments)
        if not is_ours_last:
            move_version(reference, theirs)

    monkeypatch.setattr(MlflowClient, name, move_while_they_do)
    move_version(reference, ours)

    assert current_version(reference) in (ours, theirs)
    # MLflow does not store the time of a tag, so that the highest version with the tag
    # is used.
    if reference.kind == "stage":
        last = ours if is_ours_last else theirs
        assert stages(model) == [
            "Archived",
            *("Production" if version == last else "Archived" for version in "23"),
        ]


def test_a_client_whose_earlier_move_is_written_late_takes_its_version_out(model, monkeypatch):
    reference = parse_model_uri(f"models:/{model}/Production")
    move = MlflowClient.transition_model_version_stage

    def move_late(*arguments):
        monkeypatch.undo()
        move_version(reference, "3")
        earlier = MlflowClient().get_model_version(model, "3").last_updated_timestamp - 1
        monkeypatch.setattr(
            "mlflow.store.model_registry.sqlalchemy_store.get_current_time_millis", lambda: earlier
        )
        move(*arguments)

    monkeypatch.setattr(MlflowClient, "transition_model_version_stage", move_late)
    move_version(reference, "2")

    assert stages(model) == ["None", "Archived", "Production"]


def test_of_two_clients_that_see_each_others_tag_one_keeps_its_own(model, monkeypatch):
    """The second client tags its version after the first, and both check again before
    they remove a tag.
    """
    reference = parse_model_uri(f"models:/{model}/tag:team=blue")
    move_version(reference, "1")
    set_tag = MlflowClient.set_model_version_tag
    delete_tag = MlflowClient.delete_model_version_tag
    second = Thread(target=move_version, args=(reference, "2"))
    has_tagged = Event()
    looked = Barrier(2)
    waits = local()

    def tag_and_let_the_second(client, name, version, key, value):
        set_tag(client, name, version, key, value)
        if version == "3":
            second.start()
            assert has_tagged.wait(60)
        else:
            has_tagged.set()

    def delete_when_both_have_looked(client, name, version, key):
        if not hasattr(waits, "over"):
            waits.over = looked.wait(60)
        delete_tag(client, name, version, key)

    monkeypatch.setattr(MlflowClient, "set_model_version_tag", tag_and_let_the_second)
    monkeypatch.setattr(MlflowClient, "delete_model_version_tag", delete_when_both_have_looked)
    move_version(reference, "3")
    second.join(60)

    assert current_version(reference) == "2"


def test_a_tag_stays_where_one_client_moves_it_on_while_another_moves_it_back(model, monkeypatch):
    """Both clients see two versions with the tag, and each client removes the tag from
    the other client's version.
    """
    reference = parse_model_uri(f"models:/{model}/tag:team=blue")
    move_version(reference, "1")
    delete_tag = MlflowClient.delete_model_version_tag

    def delete_after_the_second(*arguments):
        monkeypatch.undo()
        move_version(reference, "1")
        delete_tag(*arguments)

    monkeypatch.setattr(MlflowClient, "delete_model_version_tag", delete_after_the_second)
    move_version(reference, "2")

    assert current_version(reference) == "2"


@pytest.mark.long
def test_the_others_are_archived_on_postgresql_too():
    with postgresql_server() as url, tracking_at(url):
        client = MlflowClient()
        client.create_registered_model("moved")
        for version in ("1", "2"):
            client.create_model_version("moved", "/nowhere")
            client.transition_model_version_stage("moved", version, "Production")

        move_version(parse_model_uri("models:/moved/Production"), "1")

        assert [client.get_model_version("moved", version).current_stage for version in "12"] == [
            "Production",
            "Archived",
        ]


def test_pointing_at_a_version_clears_its_rolled_back_mark(model):
    MlflowClient().set_model_version_tag(model, "2", ROLLED_BACK_TAG, "flights: too slow")
    assert was_rolled_back(model, "2")

    move_version(parse_model_uri(f"models:/{model}@live"), "2")

    assert not was_rolled_back(model, "2")


def test_the_earlier_version_of_a_stage_is_the_next_one_in_it(model):
    for version in ("1", "2", "3"):
        MlflowClient().transition_model_version_stage(model, version, "Production")

    earlier = previous_in_registry(parse_model_uri(f"models:/{model}/Production"), "3")

    assert earlier is not None
    assert earlier.version == "2"
    assert earlier.source == "it is the next highest version in Production"


def test_else_it_is_the_one_that_was_archived_last_and_not_rolled_back(model):
    reference = parse_model_uri(f"models:/{model}/Production")
    for version in ("2", "1", "3"):
        move_version(reference, version)

    last = previous_in_registry(reference, "3")
    MlflowClient().set_model_version_tag(model, "1", ROLLED_BACK_TAG, "flights: too slow")
    sound = previous_in_registry(reference, "3")
    MlflowClient().set_model_version_tag(model, "2", ROLLED_BACK_TAG, "flights: too slow")

    assert last is not None
    assert last.version == "1"
    assert last.source == "it was archived last"
    assert sound is not None
    assert sound.version == "2"
    assert previous_in_registry(reference, "3") is None


def test_an_alias_leaves_no_trace_of_where_it_was(model):
    reference = parse_model_uri(f"models:/{model}@live")
    move_version(reference, "1")
    move_version(reference, "2")

    assert previous_in_registry(reference, "2") is None


def test_unknown_version_is_not_found(model):
    with refused(NotFound, f"model {model} version 9"):
        move_version(parse_model_uri(f"models:/{model}/Production"), "9")


def test_mlflow_refusal_is_quoted_in_the_error(model, monkeypatch):
    def refuse(*_, **__):
        raise MlflowException("the gate has not passed", error_code=PERMISSION_DENIED)

    monkeypatch.setattr(MlflowClient, "transition_model_version_stage", refuse)

    with refused(InvalidConfig, "MLflow", f"{model} version 2", "the gate has not passed"):
        move_version(parse_model_uri(f"models:/{model}/Production"), "2")


@pytest.mark.parametrize("code", [ENDPOINT_NOT_FOUND, NOT_IMPLEMENTED])
def test_a_move_to_a_stage_that_mlflow_has_removed_is_refused_with_the_alternative(
    code, model, monkeypatch
):
    def refuse(*_, **__):
        raise MlflowException("no such API", error_code=code)

    monkeypatch.setattr(MlflowClient, "transition_model_version_stage", refuse)

    with refused(InvalidConfig, "MLflow", f"{model} version 2", "Production", "no stages", "alias"):
        move_version(parse_model_uri(f"models:/{model}/Production"), "2")


@pytest.mark.parametrize(
    ("to", "stays"), [("Production", False), ("@live", False), ("Staging", True)]
)
def test_a_version_that_is_promoted_again_may_be_gone_back_to_again(model, to, stays):
    MlflowClient().set_model_version_tag(model, "2", ROLLED_BACK_TAG, "flights: too slow")
    place = parse_stage_or_alias(to)
    move_version(parse_model_uri(place.uri(model)), "2", clears_rollback=place.is_served_from)
    assert was_rolled_back(model, "2") is stays


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("champion", "for the alias, specify '@champion'"),
        ("Prodution", "did you mean 'Production'"),
        ("", "@champion"),
    ],
)
def test_an_alias_without_its_sign_is_suggested(text, hint):
    with refused(InvalidConfig, "neither a stage", "nor an alias", hint):
        parse_stage_or_alias(text)
