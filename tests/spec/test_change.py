"""A spec is changed field by field, and variants are added and removed."""

import pytest

from mlflow_deploy_plugin.errors import AlreadyExists, InvalidConfig
from mlflow_deploy_plugin.spec import (
    add_variant,
    apply_config,
    duration_seconds,
    new_endpoint,
    remove_variant,
)
from tests.support.specs import flights


def test_a_new_endpoint_has_one_variant_of_its_name_or_another() -> None:
    assert list(new_endpoint("flights", "m").variants) == ["flights"]
    assert list(new_endpoint("flights", "m", variant="champion").variants) == ["champion"]


def test_config_changes_fields_of_any_part_and_turns_text_into_their_type() -> None:
    changed = apply_config(
        flights(),
        {
            "server.port": "8123",
            "variants.champion.weight": "90",
            "variants.champion.model": "models:/flight-delay/8",
            "capture.fraction": "1",
            "monitors.hourly.every": "1h",
        },
    )

    assert changed.server.port == 8123
    assert changed.server.workers == 2
    assert (changed.variants["champion"].weight, changed.variants["champion"].model) == (90, "models:/flight-delay/8")
    assert changed.capture.fraction == 1.0
    assert duration_seconds(changed.monitors["hourly"].every) == 3600
    assert list(changed.monitors) == ["daily", "hourly"]


def test_a_name_with_dots_is_changed_like_any_other() -> None:
    changed = apply_config(
        new_endpoint("v1.2", "models:/m/1"),
        {"variants.v1.2.model": "models:/m/2", "variants.v1.2.weight": "5", "monitors.a.b.every": "1h"},
    )
    assert (changed.variants["v1.2"].model, changed.variants["v1.2"].weight) == ("models:/m/2", 5)
    assert changed.monitors["a.b"].every == "1h"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("server.prot", "1", "unknown config key 'server.prot'; did you mean 'server.port'"),
        ("port", "1", "unknown config key 'port'; did you mean 'server.port'"),
        ("variants.champion.wieght", "1", "did you mean 'variants.NAME.weight'"),
        ("variants.nobody.model", "m", "unknown config key 'variants.nobody.model'"),
        ("variants.weight", "1", "unknown config key 'variants.weight'"),
        ("zzz", "1", "known are server.host"),
        ("name", "x", "unknown config key 'name'"),
        ("", "x", "unknown config key ''"),
        ("server.port", "high", r"server.port: a whole number is expected .*'high'"),
        ("server.port", "70000", r"server.port: .*65535.*'70000'"),
        ("server.device", "tpu", r"server.device: .*'cpu', 'cuda' or 'tensorrt'"),
        ("capture.fraction", "1.5", r"capture.fraction: .*1.*'1.5'"),
        ("variants.nobody.weight", "1", r"variants.nobody.model: Field required"),
        ("monitors.daily.every", "soon", r"monitors.daily.every: .*'soon'"),
        ("monitors.daily.grace", "3661d", r"monitors.daily.grace: at most 3660d are expected"),
        ("monitors.daily.schedule", "every day", r"schedule: minute, hour, .* as 15 6 \* \* \* \(got 'every day'\)"),
        ("monitors.daily.schedule", "61 6 * * *", r"schedule: minute '61': 0 to 59 are expected \(got "),
        ("monitors.daily.schedule", "0 6 * * 8", r"weekday '8': 0 to 7 are expected, or sun mon "),
        ("monitors.daily.schedule", "0 6 * * 5-3", r"weekday '5-3' ends before it begins"),
        ("monitors.daily.schedule", "*/90 6 * * *", r"minute '\*/90': the step has to be"),
        ("monitors.daily.schedule", "1,, 6 * * *", r"minute '': numbers, lists, ranges and steps are expected"),
        ("monitors.daily.schedule", "0 6 30 feb *", r"no month that is named has a day 30"),
        ("monitors.daily.time_zone", "../x", r"time_zone: the name of a time zone is expected, as Europe/Berlin"),
        ("monitors.daily.reference", "window:a/b", r"reference: a window is START/END or START/DURATION in UTC"),
        ("monitors.daily.reference", "window:2013-02-01/2013-01-01", r"reference: the window ends before it begins"),
        ("monitors.daily.estimate", "decides", r"drift takes no `estimate`: it is for monitors of kind performance"),
        ("monitors.daily.labels_within", "2d", r"drift takes no `labels_within`: it is for monitors of kind"),
        ("monitors.daily.reference", "rolling:9999d", r"reference: at most 3660d are expected"),
    ],
)
def test_a_key_or_value_that_cannot_be_is_named(key: str, value: str, said: str) -> None:
    with pytest.raises(InvalidConfig, match=said):
        apply_config(flights(), {key: value})


def test_an_added_variant_gets_no_traffic_yet() -> None:
    spec = add_variant(new_endpoint("flights", "m"), "candidate", "n", {"variants.candidate.shadow": "true"})

    assert (spec.variants["candidate"].weight, spec.variants["candidate"].shadow) == (0, True)
    assert spec.variants["flights"].weight == 100
    with pytest.raises(AlreadyExists, match="'flights' has a deployment 'candidate' already"):
        add_variant(spec, "candidate", "n")


def test_a_variant_is_removed_unless_none_would_answer() -> None:
    spec = add_variant(new_endpoint("flights", "m"), "candidate", "n")

    assert remove_variant(spec, "candidate") == new_endpoint("flights", "m")
    with pytest.raises(InvalidConfig, match="no variant answers"):
        remove_variant(spec, "flights")


def test_fields_are_typed_from_the_texts_of_a_command_line_and_an_empty_one_brings_the_default_back() -> None:
    typed = {
        "server.workers": "2",
        "server.preferred_batch_size": "8,32",
        "server.rate_limit": "100/minute",
        "server.certfile": "a.pem",
        "server.keyfile": "b.pem",
        "variants.candidate.shadow": "false",
        "capture.fraction": "5e-1",
        "require": "gate=passed",
    }

    spec = apply_config(new_endpoint("x", "m", variant="candidate"), typed)

    assert (spec.server.workers, spec.server.preferred_batch_size, spec.capture.fraction) == (2, (8, 32), 0.5)
    assert apply_config(spec, dict.fromkeys(typed, "")) == new_endpoint("x", "m", variant="candidate")
