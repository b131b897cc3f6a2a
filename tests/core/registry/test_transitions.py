"""Tests of moving a reference to another version,
and of finding the previous version.
"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
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
    event_as_json,
    event_history,
    models_served_by,
    move_version,
    parse_stage_or_alias,
    previous_in_registry,
    was_rolled_back,
    without_step_events,
)
from mlflow_deploy_plugin.core.store.audit import AuditEvent
from mlflow_deploy_plugin.core.store.database import open_store
from tests.support.refusals import refused

_numbers = count()


@pytest.fixture(params=["moved"])
def model(store, request):
    """Yield a registered model with versions 1, 2 and 3, without stages."""
    name = f"{request.param}-{next(_numbers)}"
    client = MlflowClient()
    client.create_registered_model(name)
    for _ in range(3):
        client.create_model_version(name, "s3://bucket/model")
    yield name
    client.delete_registered_model(name)


@pytest.fixture
def production(model):
    return parse_model_uri(f"models:/{model}/Production")


@pytest.fixture
def blue(model):
    return parse_model_uri(f"models:/{model}/tag:team=blue")


def stages(name):
    return [
        MlflowClient().get_model_version(name, version).current_stage for version in ("1", "2", "3")
    ]


@pytest.mark.parametrize("selector", ["/production", "@live", "/tag:team=blue"])
def test_reference_moves_forward_and_back(model, selector):
    reference = parse_model_uri(f"models:/{model}{selector}")

    versions = [current_version(reference)]
    for version in ("1", "3", "3", "2"):
        move_version(reference, version)
        versions.append(current_version(reference))

    assert versions == ["", "1", "3", "3", "2"]


@pytest.mark.parametrize("model", ["moved", "eva's", 'a "b"'], indirect=True)
def test_other_versions_in_stage_are_archived(model, production):
    client = MlflowClient()
    for version in ("2", "3"):
        client.transition_model_version_stage(model, version, "Production")

    move_version(production, "2")

    assert stages(model) == ["None", "Production", "Archived"]


@pytest.mark.parametrize(
    ("selector", "is_ours_last", "ours", "theirs"),
    [
        ("/Production", True, "2", "3"),
        ("/Production", False, "3", "2"),
        ("/tag:team=blue", True, "3", "2"),
        ("/tag:team=blue", False, "2", "3"),
    ],
)
def test_concurrent_moves_have_one_winner(model, selector, is_ours_last, ours, theirs, monkeypatch):
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


def test_late_write_of_earlier_move_is_archived(model, production, monkeypatch):
    move = MlflowClient.transition_model_version_stage

    def move_late(*arguments):
        monkeypatch.undo()
        move_version(production, "3")
        earlier = MlflowClient().get_model_version(model, "3").last_updated_timestamp - 1
        monkeypatch.setattr(
            "mlflow.store.model_registry.sqlalchemy_store.get_current_time_millis", lambda: earlier
        )
        move(*arguments)

    monkeypatch.setattr(MlflowClient, "transition_model_version_stage", move_late)
    move_version(production, "2")

    assert stages(model) == ["None", "Archived", "Production"]


def test_concurrent_tag_moves_keep_one_tag(model, blue, monkeypatch):
    """The second client tags its version after the first, and both check again before
    they remove a tag.
    """
    move_version(blue, "1")
    set_tag = MlflowClient.set_model_version_tag
    delete_tag = MlflowClient.delete_model_version_tag
    second = Thread(target=move_version, args=(blue, "2"))
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
    move_version(blue, "3")
    second.join(60)

    assert current_version(blue) == "2"


def test_opposite_tag_moves_keep_one_tag(model, blue, monkeypatch):
    """Both clients see two versions with the tag, and each client removes the tag from
    the other client's version.
    """
    move_version(blue, "1")
    delete_tag = MlflowClient.delete_model_version_tag

    def delete_after_the_second(*arguments):
        monkeypatch.undo()
        move_version(blue, "1")
        delete_tag(*arguments)

    monkeypatch.setattr(MlflowClient, "delete_model_version_tag", delete_after_the_second)
    move_version(blue, "2")

    assert current_version(blue) == "2"


def test_previous_version_is_next_in_stage(model, production):
    for version in ("1", "2", "3"):
        MlflowClient().transition_model_version_stage(model, version, "Production")

    earlier = previous_in_registry(production, "3")

    assert earlier is not None
    assert earlier.version == "2"
    assert earlier.source == "it is the next highest version in Production"


def test_previous_version_was_archived_last(model, production):
    for version in ("2", "1", "3"):
        move_version(production, version)

    last = previous_in_registry(production, "3")
    MlflowClient().set_model_version_tag(model, "1", ROLLED_BACK_TAG, "flights: too slow")
    sound = previous_in_registry(production, "3")
    MlflowClient().set_model_version_tag(model, "2", ROLLED_BACK_TAG, "flights: too slow")

    assert last is not None
    assert last.version == "1"
    assert last.source == "it was archived last"
    assert sound is not None
    assert sound.version == "2"
    assert previous_in_registry(production, "3") is None


def test_alias_has_no_previous_version(model):
    reference = parse_model_uri(f"models:/{model}@live")
    move_version(reference, "1")
    move_version(reference, "2")

    assert previous_in_registry(reference, "2") is None


def test_unknown_version_is_not_found(model, production):
    with refused(NotFound, f"model {model} version 9"):
        move_version(production, "9")


@pytest.mark.parametrize(
    ("code", "names"),
    [
        (PERMISSION_DENIED, ("no such API",)),
        (ENDPOINT_NOT_FOUND, ("Production", "no stages", "alias")),
        (NOT_IMPLEMENTED, ("Production", "no stages", "alias")),
    ],
)
def test_refused_move_names_cause_or_alternative(code, names, model, production, monkeypatch):
    def refuse(*_, **__):
        raise MlflowException("no such API", error_code=code)

    monkeypatch.setattr(MlflowClient, "transition_model_version_stage", refuse)

    with refused(InvalidConfig, "MLflow", f"{model} version 2", *names):
        move_version(production, "2")


@pytest.mark.parametrize(
    ("to", "stays"), [("Production", False), ("@live", False), ("Staging", True)]
)
def test_promotion_clears_rolled_back_mark(model, to, stays):
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
def test_alias_without_sign_is_suggested(text, hint):
    with refused(InvalidConfig, "neither a stage", "nor an alias", hint):
        parse_stage_or_alias(text)


NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
SPEC = "name: flights\nvariants: {main: {model: models:/flight-delay/Production}}"


@pytest.fixture
def audit(tmp_path):
    store = open_store(f"sqlite:///{tmp_path / 'store.db'}")
    yield store
    store.close()


def event(action, minute, **fields):
    return AuditEvent(
        NOON + timedelta(minutes=minute), "eva@desk", action, model="toy", version="2", **fields
    )


def test_history_of_deleted_endpoint_includes_its_models(audit):
    audit.record("create", endpoint="flights", detail={"spec": SPEC})
    audit.record("promote", model="flight-delay", version="2")
    audit.record("promote", model="another", version="1")
    audit.record("retrain.end", endpoint="birds", model="flight-delay")
    audit.record("delete", endpoint="flights")

    assert models_served_by(audit, "flights") == ["flight-delay"]
    assert [entry.action for entry in event_history(audit, "flights", None)] == [
        "create",
        "promote",
        "delete",
    ]
    newest = event_history(audit, "flights", None, newest_first=True)
    assert [entry.action for entry in newest] == ["delete", "promote", "create"]
    promoted = event_history(audit, "flights", None, actions=("promote",))
    assert [entry.action for entry in promoted] == ["promote"]


@pytest.mark.parametrize(("actor", "found"), [("EVA", 1), ("desk", 1), ("e_a", 0), ("", 2)])
def test_events_are_filtered_by_actor(audit, actor, found):
    audit.record("create", endpoint="flights", actor="eva@desk")
    audit.record("delete", endpoint="flights", actor="ada")
    assert len([*event_history(audit, None, None, actor=actor)]) == found


@pytest.mark.parametrize("spec", [None, "name: flights\nof_a_newer_onnxserve: 1"])
def test_models_are_unknown_without_readable_spec(audit, spec):
    audit.record("create", endpoint="flights", detail={} if spec is None else {"spec": spec})
    assert models_served_by(audit, "flights") is None


def of_act(action, minute, place="", number="a" * 16, **fields):
    before = "" if place == "Archived" else "1"
    moved = {"moved": {"place": place, "before": before}} if place else {}
    made = event(action, minute, detail={"act": number, **moved})
    return replace(made, **fields)


PROMOTED = of_act("promote", 5, "Production")
PROMOTED.detail["gate"] = "passed"
ANYBODY = "anonymous@10.0.0.7"


@pytest.mark.parametrize(
    "step",
    [
        of_act("gate", 1, after="passed"),
        of_act("transition", 3, "Production"),
        of_act("transition", 3, "Production", actor=ANYBODY),
        of_act("transition", 4, "Archived", version="1"),
    ],
)
def test_steps_with_the_act_id_are_omitted(step):
    assert without_step_events([step, PROMOTED]) == [PROMOTED]
    assert without_step_events([PROMOTED, step]) == [PROMOTED]


@pytest.mark.parametrize(
    "other",
    [
        event("gate", 1),
        event("transition", 3, detail={"moved": {"place": "Production", "before": "1"}}),
        of_act("gate", 1, after="failed"),
        of_act("gate", 1, after="passed", actor="mallory"),
        of_act("gate", 1, after="passed", actor=ANYBODY),
        of_act("gate", 1, after="passed", number="b" * 16),
        of_act("gate", 6, after="passed"),
        of_act("gate", 1, after="passed", model="other"),
        of_act("tag", 2, after="passed"),
        of_act("transition", 3, "Production", version="3"),
        of_act("transition", 3, "Staging"),
        of_act("transition", 4, "Archived", version="3"),
        of_act("register", 1),
        # Another writer of the store may write any document.
        event("transition", 3, detail={"moved": "x"}),
        event("transition", 3, detail={"moved": {"place": ["Production"]}}),
        event("intend", 3),
        event("intend", 3, detail={"intention": ["a"]}),
    ],
)
def test_other_events_stay_next_to_an_act_id(other):
    assert without_step_events([other, PROMOTED]) == [other, PROMOTED]


@pytest.mark.parametrize("actor", ["eva@desk", ANYBODY])
def test_earlier_move_with_the_act_id_stays(actor):
    early = of_act("transition", 1, "Production", actor=actor)
    undone = {"moved": {"place": "Production", "before": "2"}}
    undone = replace(event("transition", 2, detail=undone), actor="bob", version="1")
    step = of_act("transition", 3, "Production", actor=actor)
    assert without_step_events([early, undone, PROMOTED]) == [early, undone, PROMOTED]
    assert without_step_events([early, undone, step, PROMOTED]) == [early, undone, PROMOTED]


def test_event_is_one_json_line():
    line = event_as_json(event("promote", 0, why="März"))
    assert line.startswith(
        '{"at": "2026-11-21T12:00:00+00:00", "actor": "eva@desk", "action": "promote"'
    )
    assert '"why": "März"' in line
    assert "\n" not in line
