"""Tests of reading and writing specs as YAML, and of the errors for invalid specs."""

from operator import attrgetter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_deploy_plugin.core.errors import AlreadyExists, InvalidConfig
from mlflow_deploy_plugin.core.spec.document import (
    add_variant,
    apply_config,
    dump_spec,
    field_reference,
    load_specs,
    load_stored_specs,
    new_endpoint,
    remove_variant,
)
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec, ProviderOptions
from mlflow_deploy_plugin.core.spec.types import duration_seconds
from tests.support.refusals import refused
from tests.support.specs import flights


@settings(max_examples=20)
@given(
    name=st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z"),
    model=st.text(
        st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=80
    ),
    weight=st.integers(1, 100),
    port=st.none() | st.integers(1, 65535),
    fraction=st.floats(0, 1),
)
def test_spec_round_trips(name, model, weight, port, fraction):
    config = {f"server.{key}": value for key, value in {"port": port}.items() if value is not None}
    spec = new_endpoint(name, model, {**config, "capture.fraction": fraction})
    spec = EndpointSpec.model_validate(
        {**spec.model_dump(by_alias=True), "variants": {name: {"model": model, "weight": weight}}}
    )

    assert load_specs(dump_spec(spec)) == [spec]


def test_first_document_describes_the_server():
    first = "name: a\nvariants: {v: {model: x}}\nserver: {workers: 2}"
    alike = "name: b\nvariants: {v: {model: x}}\nserver: {workers: 2}"
    silent = "name: c\nvariants: {v: {model: x}}"
    assert [spec.name for spec in load_specs("\n---\n".join([first, alike, silent]))] == [
        "a",
        "b",
        "c",
    ]

    with pytest.raises(InvalidConfig, match=r"'a' .*`server`.* 'c'"):
        load_specs("\n---\n".join([silent, first]))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the spec is empty"),
        ("a: [", "not valid YAML"),
        ("- a", "a spec is a mapping with `name` and `variants`, not list"),
        ("name: x", "variants: Field required"),
        ("name: x\nvariants: {}", "variants: "),
        ("name: x\nvariants: m", "variants: fields with values are expected (got 'm')"),
        ("name: x\nvariants: {x: m}", "variants.x: fields with values are expected (got 'm')"),
        (
            "name: ../x\nvariants: {x: {model: m}}",
            "name: at most 63 letters, digits, . _ - are expected, starting with a",
        ),
        (
            "name: x\nvariants: {a b: {model: m}}",
            "variants.a b: at most 63 letters, digits, . _ - are expected",
        ),
        (
            "name: x\nvariants: {x: {model: m, weight: much}}",
            "variants.x.weight: a whole number is expected (got 'much')",
        ),
        (
            "name: x\nvariants: {x: {model: m, weight: 101}}",
            "variants.x.weight: at most 100 is expected (got 101)",
        ),
        (
            "name: x\n"
            "variants: {x: {model: m}}\n"
            "server: {provider_options: {gpu_mem_limit: 2000000}}",
            "server: provider_options.gpu_mem_limit requires a GPU, but device is cpu",
        ),
        (
            "name: x\nvariants: {x: {model: m}}\nserver: {device: cuda, device_ids: [0, 1]}",
            (
                "server: device_ids 0, 1 with 1 workers: different GPUs and at least one worker "
                "for each GPU are expected"
            ),
        ),
        (
            "name: x\n"
            "variants: {x: {model: m}}\n"
            "server: {device: cuda, provider_options: {arena_extend_strategy: k}}",
            (
                "server.provider_options.arena_extend_strategy: 'kNextPowerOfTwo' or "
                "'kSameAsRequested' is expected"
            ),
        ),
        ("name: x\nvariants: {x: {model: ''}}", "variants.x.model: "),
        (
            "name: x\nvariants: {x: {model: m}}\nmonitors: {d: {reference: last_week}}",
            (
                "monitors.d.reference: training, rolling:7d, window:START/END or dataset:URI is "
                "expected (got 'last_week')"
            ),
        ),
        ("name: x\nvariants: {x: {model: m}}\napiVersion: onnxserve/v9", "apiVersion: "),
        (
            "name: x\nvariants: {x: {model: m}}\ncapture: {retention: 90}",
            "capture.retention: a text is expected (got 90)",
        ),
        (
            "name: x\n"
            "variants: {x: {model: m}}\n"
            "capture: {retention: 1d}\n"
            "monitors: {daily: {every: 1d}}",
            (
                "capture.retention 1d is shorter than the period of the log that monitor 'daily' "
                "reads: at least 25h"
            ),
        ),
        (
            "name: x\n"
            "variants: {x: {model: m}}\n"
            "capture: {retention: 30d}\n"
            "monitors: {d: {reference: 'rolling:7d'}}",
            (
                "capture.retention 30d is shorter than the period of the log that monitor 'd' "
                "reads: at least 49d"
            ),
        ),
        (
            "name: x\nvariants: {x: {model: m}}\ncapture: {retention: 7d}\n"
            "monitors: {d: {kind: performance, require: 'f1>=0.7', every: 1d, labels_within: 2d}}",
            (
                "capture.retention 7d is shorter than the period of the log that monitor 'd' "
                "reads: at least 8d"
            ),
        ),
        (
            "name: x\n"
            "variants: {x: {model: m}}\n"
            "monitors: {d: {reference: 'rolling:7d', false_alarm_rate: 0.001}}",
            (
                "monitors.d: false_alarm_rate 0.001 with a rolling reference: at least 0.002 is "
                "expected"
            ),
        ),
        (
            "name: x\nvariants: {x: {model: m}}\n---\nname: x\nvariants: {x: {model: m}}",
            "'x' is repeated",
        ),
        (
            "name: x\nvariants: {x: {model: m}}\ncapture: {sinks: {a: {url: 'http://u:p@h'}}}",
            "capture.sinks.a.url: an address like https://host/path, without a user",
        ),
        (
            "name: x\nvariants: {x: {model: m}}\ncapture: {sinks: {a: {url: 'htps://h'}}}",
            "capture.sinks.a.url",
        ),
        (
            "name: x\nvariants: {x: {model: m}}\n"
            "capture: {sinks: {a: {url: 'http://h', authorization: AWS_SECRET}}}",
            "capture.sinks.a.authorization: an environment variable whose name begins with ",
        ),
    ],
)
def test_invalid_document_error_names_field(text, said):
    with pytest.raises(InvalidConfig) as caught:
        load_specs(text)

    assert said in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        "observe: 'postgresql://u:hunter2@h/db'",
        "observe: {source: 'postgresql://u:hunter2 @h/db'}",
        "observe: {source: 'postgresql://u:hunter2@h/db', query: t}",
        "observe: {source: 'postgresql://u@h/db', query: t, password: hunter2}",
        "capture: {sinks: {a: {url: 'https://u:hunter2@h'}}}",
        "capture: {sinks: {a: {url: 'https://h', authorization: Bearer hunter2}}}",
    ],
)
def test_message_does_not_repeat_a_misplaced_secret(text):
    with pytest.raises(InvalidConfig) as caught:
        load_stored_specs(f"name: x\nvariants: {{}}\n{text}")

    assert "hunter2" not in caught.value.message


def test_field_reference_is_complete():
    rows = list(field_reference())

    names = {name for name, *_ in rows}
    assert {
        "server.port",
        "capture.fraction",
        "variants.NAME.weight",
        "monitors.NAME.every",
    } <= names
    assert all(kind and description for _, kind, _, description in rows)
    for name in names:
        if name.startswith(("server.", "capture.")) and "NAME" not in name:
            value = attrgetter(name)(flights())
            if value is not None:
                assert apply_config(flights(), {name: value}) == flights()


def test_new_endpoint_has_one_variant():
    assert list(new_endpoint("flights", "m").variants) == ["flights"]
    assert list(new_endpoint("flights", "m", variant="champion").variants) == ["champion"]


def test_config_changes_typed_fields():
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
    assert changed.variants["champion"].weight == 90
    assert changed.variants["champion"].model == "models:/flight-delay/8"
    assert changed.capture.fraction == 1.0
    assert duration_seconds(changed.monitors["hourly"].every) == 3600
    assert list(changed.monitors) == ["daily", "hourly"]


def test_provider_options_are_set_by_dotted_name():
    changes = {"server.device": "cuda", "server.workers": "2", "server.device_ids": "0,1"}
    options = {
        "server.provider_options.use_tf32": "false",
        "server.provider_options.gpu_mem_limit": "4000000000",
    }
    changed = apply_config(new_endpoint("x", "models:/m/1"), changes | options)
    assert changed.server.device_ids == (0, 1)
    assert changed.server.provider_options == ProviderOptions(
        use_tf32=False, gpu_mem_limit=4_000_000_000
    )
    assert load_specs(dump_spec(changed)) == [changed]
    assert (
        apply_config(changed, dict.fromkeys(options, "")).server.provider_options
        == ProviderOptions()
    )


@pytest.mark.parametrize(
    ("text", "unknown", "near"),
    [
        ("name: x\nvariants: {x: {modell: m}}", "variants.x.modell", "variants.NAME.model"),
        ("name: x\nmodel: m", "model", "variants.NAME.model"),
        ("name: x\nmodell: m", "modell", "variants.NAME.model"),
        ("nam: x\nvariants: {x: {model: m}}", "nam", "name"),
        ("name: x\nvariants: {x: {model: m}}\nport: 8080", "port", "server.port"),
        ("name: x\nvariants: {x: {model: m}}\nguard: {than: flag}", "guard.than", "guard.then"),
        ("name: x\nvariants: {x: {model: m}}\nmontiors: {}", "montiors", "monitors"),
    ],
)
def test_unknown_field_is_named_before_missing_ones(text, unknown, near):
    with refused(InvalidConfig, f"unknown field '{unknown}'", f"'{near}'"):
        load_specs(text)


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("guard", "guard.then", "flag"),
        ("sticky", "sticky.header", "X-User-Id"),
        ("kubernetes", "kubernetes.replicas", "2"),
        ("monitors.daily.retrain", "monitors.daily.retrain.project", "p"),
    ],
)
def test_part_is_removed_by_empty_value(part, field, value):
    before = apply_config(flights(), {"monitors.daily.kind": "drift"})
    assert apply_config(apply_config(before, {field: value}), {part: ""}) == before


def test_sink_is_set_and_removed():
    changed = apply_config(flights(), {"capture.sinks.audit.url": "http://audit:8080/in?a=b"})
    assert changed.capture.sinks["audit"].batch == 100
    assert load_specs(dump_spec(changed)) == [changed]
    for name in ("capture.sinks.audit", "capture.sinks"):
        assert apply_config(changed, {name: ""}) == flights()


def test_names_may_contain_dots():
    changed = apply_config(
        new_endpoint("v1.2", "models:/m/1"),
        {
            "variants.v1.2.model": "models:/m/2",
            "variants.v1.2.weight": "5",
            "monitors.a.b.every": "1h",
        },
    )
    assert changed.variants["v1.2"].model == "models:/m/2"
    assert changed.variants["v1.2"].weight == 5
    assert changed.monitors["a.b"].every == "1h"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("server.prot", "1", "unknown config key 'server.prot'; did you mean 'server.port'"),
        ("variants.champion.wieght", "1", "did you mean 'variants.NAME.weight'"),
        ("variants.nobody.model", "m", "unknown config key 'variants.nobody.model'"),
        ("guard", "refuse", "the fields of 'guard' are guard.then"),
        ("monitors.daily", "", "the fields of 'monitors.daily' are monitors.NAME"),
        ("zzz", "1", "'zzz'; `mlflow deployments help -t onnxserve` lists the fields"),
        ("name", "x", "unknown config key 'name'"),
        ("", "x", "unknown config key ''"),
        ("server.port", "high", r"server.port: a whole number is expected .*'high'"),
        ("server.port", "70000", r"server.port: .*65535.*'70000'"),
        ("server.device", "tpu", r"server.device: .*'cpu' or 'cuda'"),
        ("variants.nobody.weight", "1", r"variants.nobody.model: Field required"),
        ("monitors.daily.every", "soon", r"monitors.daily.every: .*'soon'"),
        ("container.environment.A", "a\0b", r"container.environment.A: .*NUL"),
        ("monitors.daily.grace", "3661d", r"monitors.daily.grace: at most 3660d are expected"),
        (
            "monitors.daily.schedule",
            "every day",
            r"schedule: five fields are expected; .* e.g. 15 6 \* \* 1-5 \(got 'every day'\)",
        ),
        (
            "monitors.daily.time_zone",
            "../x",
            r"time_zone: the name of a time zone is expected, e.g. Europe/Berlin",
        ),
        ("monitors.daily.labels", "sample", r"labels: .*'sampled', 'reported' or 'late'"),
    ],
)
def test_invalid_config_error_names_key(key, value, said):
    with pytest.raises(InvalidConfig, match=said):
        apply_config(flights(), {key: value})


def test_added_variant_gets_no_traffic():
    both = add_variant(new_endpoint("flights", "m"), "candidate", "n")
    spec = apply_config(both, {"variants.candidate.shadow": "true"})

    assert (spec.variants["candidate"].weight, spec.variants["candidate"].shadow) == (0, True)
    assert spec.variants["flights"].weight == 100
    with pytest.raises(AlreadyExists, match=r"'flights' .*'candidate'"):
        add_variant(spec, "candidate", "n")


def test_last_answering_variant_is_not_removed():
    spec = add_variant(new_endpoint("flights", "m"), "candidate", "n")

    assert remove_variant(spec, "candidate") == new_endpoint("flights", "m")
    with pytest.raises(InvalidConfig, match="receives traffic"):
        remove_variant(spec, "flights")
