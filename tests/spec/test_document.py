"""A spec is read from YAML and written back, and every mistake in it is named."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.spec import (
    EndpointSpec,
    apply_config,
    dump_spec,
    field_reference,
    load_specs,
    new_endpoint,
)
from tests.support.specs import FLIGHTS, flights


def test_a_document_is_read() -> None:
    spec = flights()

    assert spec.name == "flights"
    assert [(name, v.weight, v.shadow) for name, v in spec.variants.items()] == [
        ("champion", 95, False),
        ("challenger", 5, False),
        ("candidate", 100, True),
    ]
    assert (spec.server.workers, spec.server.port, spec.server.host) == (2, 8080, "127.0.0.1")
    assert spec.capture.fraction == 0.5
    assert spec.monitors["daily"].min_rows == 500


def test_several_documents_are_several_endpoints() -> None:
    specs = load_specs(f"{FLIGHTS}\n---\nname: other\nvariants: {{other: {{model: m}}}}\n---\n")

    assert [spec.name for spec in specs] == ["flights", "other"]


@given(
    name=st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z"),
    model=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=80),
    weight=st.integers(1, 100),
    port=st.none() | st.integers(1, 65535),
    fraction=st.floats(0, 1),
)
def test_what_is_written_is_read_back(name: str, model: str, weight: int, port: int | None, fraction: float) -> None:
    config: dict[str, Any] = {f"server.{key}": value for key, value in {"port": port}.items() if value is not None}
    spec = new_endpoint(name, model, {**config, "capture.fraction": fraction})
    spec = EndpointSpec.model_validate(
        {**spec.model_dump(by_alias=True), "variants": {name: {"model": model, "weight": weight}}}
    )

    assert load_specs(dump_spec(spec)) == [spec]


def test_the_first_document_describes_the_server_for_all() -> None:
    first, alike, silent = (
        "name: a\nvariants: {v: {model: x}}\nserver: {workers: 2}",
        "name: b\nvariants: {v: {model: x}}\nserver: {workers: 2}",
        "name: c\nvariants: {v: {model: x}}",
    )
    assert [spec.name for spec in load_specs("\n---\n".join([first, alike, silent]))] == ["a", "b", "c"]

    with pytest.raises(InvalidConfig, match=r"endpoint 'a' has a `server` of its own.* say it in the first, 'c'"):
        load_specs("\n---\n".join([silent, first]))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the spec is empty"),
        ("a: [", "not valid YAML"),
        ("- a", "a spec is a mapping with `name` and `variants`, not list"),
        ("name: x", "variants: Field required"),
        ("name: x\nvariants: {}", "variants: "),
        ("name: ../x\nvariants: {x: {model: m}}", "name: letters, digits, . _ - are expected, at most 63, the first a"),
        ("name: x\nvariants: {a b: {model: m}}", "variants.a b: letters, digits, . _ - are expected"),
        (
            "name: x\nvariants: {x: {model: m, weight: much}}",
            "variants.x.weight: a whole number is expected (got 'much')",
        ),
        ("name: x\nvariants: {x: {model: m, weight: 101}}", "variants.x.weight: at most 100 is expected (got 101)"),
        ("name: x\nvariants: {x: {model: m}}\nserver: {device: tpu}", "server.device: 'cpu', 'cuda' or 'tensorrt' is"),
        ("name: x\nvariants: {x: {model: ''}}", "variants.x.model: "),
        ("name: x\nvariants: {x: {model: m, weight: 0}}", "no variant answers"),
        ("name: x\nvariants: {x: {model: m, shadow: true}}", "no variant answers"),
        (
            "name: x\nvariants: {x: {model: m}}\nserver: {prot: 1}",
            "unknown field 'server.prot'; did you mean 'server.port'",
        ),
        (
            "name: x\nvariants: {x: {model: m}}\nmonitors: {d: {reference: last_week}}",
            "monitors.d.reference: training, rolling:7d, window:START/END or dataset:URI is expected (got 'last_week')",
        ),
        ("name: x\nvariants: {x: {model: m}}\napiVersion: onnxserve/v9", "apiVersion: "),
        (
            "name: x\nvariants: {x: {model: m}}\ncapture: {retention: 90}",
            "capture.retention: a text is expected (got 90)",
        ),
        (
            "name: x\nvariants: {x: {model: m}}\ncapture: {retention: 1d}\nmonitors: {daily: {every: 1d}}",
            "capture.retention 1d is shorter than what monitor 'daily' reads of the log: at least 25h is expected",
        ),
        (
            "name: x\nvariants: {x: {model: m}}\ncapture: {retention: 30d}\nmonitors: {d: {reference: 'rolling:7d'}}",
            "capture.retention 30d is shorter than what monitor 'd' reads of the log: at least 49d is expected",
        ),
        (
            "name: x\nvariants: {x: {model: m}}\ncapture: {retention: 7d}\n"
            "monitors: {d: {kind: performance, require: 'f1>=0.7', every: 1d, labels_within: 2d}}",
            "capture.retention 7d is shorter than what monitor 'd' reads of the log: at least 8d is expected",
        ),
        (
            "name: x\nvariants: {x: {model: m}}\nmonitors: {d: {reference: 'rolling:7d', false_alarm_rate: 0.001}}",
            "monitors.d: false_alarm_rate 0.001 with a rolling reference: at least 0.002 is expected",
        ),
        ("name: x\nvariants: {x: {model: m}}\n---\nname: x\nvariants: {x: {model: m}}", "'x' stands twice"),
    ],
)
def test_a_document_that_is_no_spec_says_where(text: str, said: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        load_specs(text)

    assert said in caught.value.message
    assert "\n" not in caught.value.message


def test_every_field_that_config_takes_is_in_the_reference_and_described() -> None:
    rows = list(field_reference())

    names = {name for name, *_ in rows}
    assert {"server.port", "capture.fraction", "variants.NAME.weight", "monitors.NAME.every"} <= names
    assert all(kind and description for _, kind, _, description in rows)
    for name in names:
        if name.startswith(("server.", "capture.")):
            part, field = name.split(".")
            value = getattr(getattr(flights(), part), field)
            if value is not None:
                assert apply_config(flights(), {name: value}) == flights()
