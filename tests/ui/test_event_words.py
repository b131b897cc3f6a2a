"""Events of the audit trail in words."""

import re
from datetime import UTC, datetime

import pytest

from mlflow_deploy_plugin.core.store.audit import AuditEvent
from mlflow_deploy_plugin.ui.event_words import event_rows

AT = datetime(2026, 11, 20, tzinfo=UTC)


@pytest.mark.parametrize(
    ("action", "fields", "words", "change"),
    [
        ("create", {"endpoint": "f", "after": "main 100"}, "created the endpoint f", "main 100"),
        ("delete", {"model": "m", "before": "m"}, "deleted the model m", "m → nothing"),
        (
            "transition",
            {"model": "m", "version": "7", "before": "Staging", "after": "Production"},
            "moved version 7 of m to another stage",
            "Staging → Production",
        ),
        (
            "tag",
            {"model": "m", "after": "skip: [budget]", "detail": {"tag": "t"}},
            "changed the tag t of m",
            "skip: [budget]",
        ),
        ("refused", {"model": "m", "before": "m"}, "was refused a change of m", ""),
        (
            "refused",
            {
                "model": "m",
                "version": "6",
                "before": "version 5 in @champion",
                "detail": {"to": "@champion"},
            },
            "was refused a change of version 6 of m",
            "@champion",
        ),
        ("load", {"endpoint": "f", "after": "loaded"}, "loaded f by model control", ""),
        ("unload", {"endpoint": "f", "after": "failed"}, "failed to unload f by model control", ""),
        (
            "rollback",
            {
                "endpoint": "f",
                "version": "models:/x@y",
                "before": "models:/x/4",
                "after": "models:/x@y",
            },
            "rolled f back to models:/x@y",
            "models:/x/4 → models:/x@y",
        ),
        (
            "rollback",
            {
                "endpoint": "f",
                "model": "m",
                "version": "4",
                "before": "version 5",
                "after": "version 4",
            },
            "rolled f back to version 4 of m",
            "version 5 → version 4",
        ),
        (
            "transition",
            {"model": "m", "version": "6", "before": "Staging", "after": "deleted"},
            "deleted version 6 of m",
            "Staging → deleted",
        ),
        ("of a later version", {"endpoint": "f", "model": "m"}, "of a later version: f m", ""),
        ("a {b} <c>", {"endpoint": "f", "model": "m"}, "a {b} &lt;c&gt;: f m", ""),
    ],
)
def test_event_is_a_phrase_with_values(action, fields, words, change):
    (row,) = event_rows([AuditEvent(AT, "ada", action, **fields)])
    assert re.sub("<[^>]*>", "", row.words).strip() == words
    assert row.change == change


def test_name_is_escaped():
    (row,) = event_rows([AuditEvent(AT, "ada", "promote", model="<b>{after}</b>", version="7")])
    assert row.words == "promoted version 7 of <bdi>&lt;b&gt;{after}&lt;/b&gt;</bdi>"
