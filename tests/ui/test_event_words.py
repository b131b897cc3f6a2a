"""Events of the audit trail in words."""

import re
from datetime import UTC, datetime
from typing import Any

import pytest

from mlflow_deploy_plugin.store import AuditEvent
from mlflow_deploy_plugin.ui.event_words import event_rows

AT = datetime(2026, 11, 20, tzinfo=UTC)


@pytest.mark.parametrize(
    ("action", "fields", "words", "change"),
    [
        ("create", {"endpoint": "f", "after": "main 100"}, "created the endpoint f", "main 100"),
        ("delete", {"endpoint": "f", "before": "main 100"}, "deleted the endpoint f", "main 100 → nothing"),
        ("delete", {"model": "m", "before": "m"}, "deleted the model m", "m → nothing"),
        (
            "transition",
            {"model": "m", "version": "7", "before": "Staging", "after": "Production"},
            "moved version 7 of m to another stage",
            "Staging → Production",
        ),
        (
            "gate",
            {"model": "m", "version": "7", "before": "models:/m/6", "after": "failed"},
            "ran the gate for version 7 of m: failed",
            "",
        ),
        (
            "approve",
            {"model": "m", "version": "7", "after": "@champion"},
            "approved the promotion of version 7 of m to @champion",
            "",
        ),
        (
            "tag",
            {"model": "m", "after": "skip: [budget]", "detail": {"tag": "t"}},
            "changed the tag t of m",
            "skip: [budget]",
        ),
        ("refused", {"model": "m", "before": "m"}, "was refused a change of m", "m → nothing"),
        ("monitor.pause", {"endpoint": "f", "detail": {"monitor": "hits"}}, "paused the monitor hits of f", ""),
        ("of a later version", {"endpoint": "f", "model": "m"}, "of a later version: f m", ""),
    ],
)
def test_an_event_is_a_phrase_about_its_actor_and_has_the_values_that_the_phrase_lacks(
    action: str, fields: dict[str, Any], words: str, change: str
) -> None:
    (row,) = event_rows([AuditEvent(AT, "ada", action, **fields)])
    assert re.sub("<[^>]*>", "", row.words).strip() == words
    assert row.change == change


def test_a_name_is_not_markup() -> None:
    (row,) = event_rows([AuditEvent(AT, "ada", "promote", model="<b>{after}</b>", version="7")])
    assert row.words == "promoted version 7 of <bdi>&lt;b&gt;{after}&lt;/b&gt;</bdi>"
