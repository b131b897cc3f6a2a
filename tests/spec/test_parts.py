"""The parts of a spec hold each other to what goes together."""

import pytest

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.spec import apply_config, dump_spec, load_specs
from tests.support.specs import flights


def test_a_caller_sticks_by_one_of_header_and_key_and_the_last_one_said_holds() -> None:
    by_header = apply_config(flights(), {"sticky.header": "X-User-Id"})
    assert by_header.sticky is not None
    assert by_header.sticky.header == "x-user-id"
    assert load_specs(dump_spec(by_header)) == [by_header]

    by_key = apply_config(by_header, {"sticky.key": "user"})
    assert by_key.sticky is not None
    assert (by_key.sticky.header, by_key.sticky.key) == (None, "user")
    assert apply_config(by_key, {"sticky.key": ""}).sticky is None
    with pytest.raises(InvalidConfig, match="exactly one of header and key"):
        apply_config(flights(), {"sticky.header": "X-User-Id", "sticky.key": "user"})


def test_a_passed_gate_can_be_required_and_no_longer_required() -> None:
    gated = apply_config(flights(), {"require": "gate=passed"})
    assert gated.require == "gate=passed"
    assert load_specs(dump_spec(gated)) == [gated]
    assert apply_config(gated, {"require": ""}).require is None
    with pytest.raises(InvalidConfig, match=r"require: .*gate=passed"):
        apply_config(gated, {"require": "gate=maybe"})
