"""The wording of the most frequent errors for authors of a spec."""

from collections.abc import Callable
from functools import partial

import pytest

from mlflow_deploy_plugin.core.spec.document import add_variant, apply_config, load_specs
from mlflow_deploy_plugin.core.spec.types import load_time_zone, parse_duration
from tests.support.messages import message_of
from tests.support.specs import FLIGHTS, flights


def _with(**config: str) -> Callable[[], object]:
    """Return a change of fields of an endpoint; `__` in a name stands for a dot."""
    return partial(
        apply_config,
        flights(),
        {name.replace("__", "."): value for name, value in config.items()},
    )


MESSAGES: dict[str, tuple[Callable[[], object], str]] = {
    "a field without a value": (
        partial(load_specs, FLIGHTS.replace("weight: 95", "weight: ")),
        "variants.champion.weight: a whole number is expected (got None)",
    ),
    "an unknown field": (
        partial(load_specs, FLIGHTS + "montiors: {}\n"),
        "unknown field 'montiors'; did you mean 'monitors'?",
    ),
    "an unknown key": (
        _with(server__prot="1"),
        "unknown config key 'server.prot'; did you mean 'server.port'?",
    ),
    "a text for a number": (
        _with(server__port="high"),
        "server.port: a whole number is expected (got 'high')",
    ),
    "a number out of bounds": (
        _with(capture__fraction="1.5"),
        "capture.fraction: at most 1.0 is expected (got '1.5')",
    ),
    "an unknown choice": (
        _with(server__device="tpu"),
        "server.device: 'cpu' or 'cuda' is expected (got 'tpu')",
    ),
    "a wrong duration": (
        _with(monitors__daily__every="soon"),
        "monitors.daily.every: a duration like 30s, 5m, 1h, 1d or 1w is expected (got 'soon')",
    ),
    "a wrong schedule": (
        _with(monitors__daily__schedule="every day"),
        (
            "monitors.daily.schedule: five fields are expected; minute, hour, day, month and "
            "weekday are expected, e.g. 15 6 * * 1-5 (got 'every day')"
        ),
    ),
    "a wrong window": (
        _with(monitors__daily__reference="window:a/b"),
        (
            "monitors.daily.reference: a window is START/END or START/DURATION in UTC, e.g. "
            "window:2013-01-01/2013-04-01: 'a' is not a time (got 'window:a/b')"
        ),
    ),
    "a field of another kind of monitor": (
        _with(monitors__daily__estimate="decides"),
        (
            "monitors.daily: a monitor of kind drift does not accept `estimate`, which is for kind "
            "performance"
        ),
    ),
    "half a pair of files": (
        _with(server__certfile="/c.pem"),
        "server: certfile and keyfile must be set together",
    ),
    "one port for two protocols": (
        _with(server__grpc_port="8080"),
        "server: port and grpc_port are both 8080; they must differ",
    ),
    "no traffic": (
        _with(variants__champion__weight="0", variants__challenger__weight="0"),
        "no variant receives traffic: a weight above 0 and shadow: false are expected",
    ),
    "both a header and a key": (
        _with(sticky__header="X-User-Id", sticky__key="user"),
        "sticky: exactly one of header and key is expected",
    ),
    "a variant that exists": (
        lambda: add_variant(flights(), "candidate", "models:/m/1"),
        "the endpoint 'flights' already has a deployment 'candidate': update or delete it",
    ),
    "a wrong option": (
        lambda: parse_duration("1.5h", "--keep"),
        "--keep '1.5h' cannot be read; a duration like 30s, 5m, 1h, 90d or 1w is expected",
    ),
    "an unknown time zone": (
        lambda: load_time_zone("Europe/Nowhere"),
        "time_zone 'Europe/Nowhere' is not known; a name like Europe/Berlin is expected",
    ),
}


@pytest.mark.parametrize(
    ("cause", "message"),
    MESSAGES.values(),
    ids=MESSAGES,
)
def test_refusal_names_the_field_and_the_expected_value(
    cause: Callable[[], object],
    message: str,
) -> None:
    assert message_of(cause) == message
