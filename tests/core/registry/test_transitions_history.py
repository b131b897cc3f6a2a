"""Tests of the events of an endpoint and its models, from a store in a SQLite file."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mlflow_deploy_plugin.core.registry.transitions import (
    STARTED_AT,
    event_as_json,
    event_history,
    models_served_by,
    without_step_events,
)
from mlflow_deploy_plugin.core.store.audit import AuditEvent
from mlflow_deploy_plugin.core.store.database import open_store

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


def test_the_trail_of_a_deleted_endpoint_has_the_events_of_the_models_that_it_served_last(audit):
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
def test_events_are_selected_by_part_of_the_actor(audit, actor, found):
    audit.record("create", endpoint="flights", actor="eva@desk")
    audit.record("delete", endpoint="flights", actor="ada")
    assert len([*event_history(audit, None, None, actor=actor)]) == found


@pytest.mark.parametrize("spec", [None, "name: flights\nof_a_newer_onnxserve: 1"])
def test_models_are_unknown_without_a_readable_spec(audit, spec):
    audit.record("create", endpoint="flights", detail={} if spec is None else {"spec": spec})
    assert models_served_by(audit, "flights") is None


def test_the_steps_of_a_promotion_are_left_out():
    promoted = AuditEvent(
        NOON + timedelta(minutes=5),
        "eva@desk",
        "promote",
        model="toy",
        version="2",
        detail={STARTED_AT: NOON.isoformat()},
    )
    events = [
        event("gate", -1),
        event("gate", 1),
        event("transition", 4),
        promoted,
        event("tag", 6),
    ]
    assert [entry.action for entry in without_step_events(events)] == ["gate", "promote", "tag"]


def test_archiving_caused_by_a_promotion_is_not_a_separate_event():
    archived = replace(event("transition", 4, before="Production", after="Archived"), version="1")
    by_itself = replace(archived, at=NOON - timedelta(minutes=1))
    promoted = event("promote", 5, detail={STARTED_AT: NOON.isoformat()})
    assert without_step_events([by_itself, archived, promoted]) == [by_itself, promoted]


class CountedTime(datetime):
    compared = 0

    def __le__(self, other: Any) -> bool:
        CountedTime.compared += 1
        return super().__le__(other)

    def __lt__(self, other: Any) -> bool:
        CountedTime.compared += 1
        return super().__lt__(other)


def test_each_of_many_promotions_takes_its_own_steps_and_is_compared_with_few_events():
    events = []
    for number in range(500):
        begun = NOON + timedelta(hours=number)
        gated, moved, ended = (
            CountedTime.fromisoformat((begun + timedelta(minutes=m)).isoformat()) for m in (1, 2, 3)
        )
        act = event("promote", 0, detail={STARTED_AT: begun.isoformat()})
        events += [
            replace(event("gate", 0), at=gated),
            replace(event("gate", 0), at=moved),
            replace(act, at=ended),
        ]

    assert {entry.action for entry in without_step_events(events)} == {"promote"}
    assert CountedTime.compared < 50 * len(events)


def test_an_event_is_one_line_of_json():
    line = event_as_json(event("promote", 0, why="März"))
    assert line.startswith(
        '{"at": "2026-11-21T12:00:00+00:00", "actor": "eva@desk", "action": "promote"'
    )
    assert '"why": "März"' in line
    assert "\n" not in line
