"""Tests of specs as systemd units: verified by systemd's tool, with few rights, and
with correct quoting.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.spec.document import load_specs, new_endpoint
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec
from mlflow_deploy_plugin.ship.manifests.formats import FORMATS
from mlflow_deploy_plugin.ship.manifests.served import Place
from mlflow_deploy_plugin.ship.manifests.systemd import PROGRAM
from tests.support.refusals import refused

UNIT = "etc/systemd/system/onnxserve-flights.service"
SPEC = "etc/onnxserve/flights.yaml"
NEEDS_SYSTEMD = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="systemd-analyze is not installed (apt-get install systemd)",
)


def rendered(
    config: dict[str, Any] | None = None,
    model: str = "models:/flight-delay/Production",
) -> tuple[str, str]:
    """Return the unit and the spec."""
    files = FORMATS["systemd"](new_endpoint("flights", model, config), Place())
    assert set(files) == {UNIT, SPEC}
    return files[UNIT], files[SPEC]


def lines(unit: str, name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", unit, re.M)


FULL = {
    "container.cpus": "1.5",
    "container.memory_bytes": str(1024**3),
    "container.environment.MLFLOW_TRACKING_URI": "http://mlflow:5000/?a=%20&b='\"\\",
    "container.secrets.AWS_SECRET_ACCESS_KEY": "/etc/onnxserve/secrets/aws",
    "container.secret_files.ONNXSERVE_KEYS_FILE": "/etc/onnxserve/keys.json",
    "server.certfile": "/etc/letsencrypt/live/flights/fullchain.pem",
    "server.keyfile": "/etc/letsencrypt/live/flights/privkey.pem",
    "server.port": "443",
    "server.host": "0.0.0.0",
    "server.api_keys": "true",
    "server.graceful_timeout_seconds": "10",
}


@NEEDS_SYSTEMD
@pytest.mark.parametrize("config", [{}, FULL, {"server.device": "cuda"}])
def test_systemd_finds_no_mistake_and_little_exposure(
    config: dict[str, str],
    tmp_path: Path,
) -> None:
    unit = tmp_path / "onnxserve-flights.service"
    unit.write_text(rendered(config, "/srv/models/flights")[0].replace(PROGRAM, sys.executable))
    verified = subprocess.run(
        ["systemd-analyze", "verify", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [line for line in verified.stderr.splitlines() if "onnxserve" in line]
    assert verified.returncode == 0
    assert ours == []
    # The scale ends at 100; a unit without hardening has 96.
    exposed = [
        "systemd-analyze",
        "security",
        "--offline=true",
        "--threshold=25",
        str(unit),
    ]
    assert subprocess.run(exposed, capture_output=True, text=True, check=False).returncode == 0


def test_a_server_starts_and_ends_in_order_keeps_its_state_and_has_no_rights() -> None:
    unit, spec = rendered(FULL, "/home/ada/models/flights")
    # The timeout includes fetching and loading the model.
    assert lines(unit, "Type") == ["notify"]
    assert lines(unit, "TimeoutStartSec") == ["600"]
    # The unit restarts until the registry is up again.
    assert lines(unit, "StartLimitIntervalSec") == ["0"]
    # The time for requests in flight, and then for captured requests.
    assert lines(unit, "TimeoutStopSec") == ["50"]
    assert lines(unit, "KillMode") == ["mixed"]
    assert lines(unit, "CPUQuota") == ["150%"]
    assert lines(unit, "MemoryMax") == ["1073741824"]
    assert lines(unit, "StateDirectory") == ["onnxserve-flights"]
    assert lines(unit, "DynamicUser") == lines(unit, "NoNewPrivileges") == ["yes"]
    assert lines(unit, "ProtectSystem") == ["strict"]
    # Port 443 needs this capability. No other capability is granted.
    assert lines(unit, "CapabilityBoundingSet") == ["CAP_NET_BIND_SERVICE"]
    assert lines(rendered()[0], "CapabilityBoundingSet") == [""]
    assert lines(unit, "BindReadOnlyPaths") == ["/home/ada/models/flights"]
    assert lines(unit, "LoadCredential") == [
        "AWS_SECRET_ACCESS_KEY:/etc/onnxserve/secrets/aws",
        "ONNXSERVE_KEYS_FILE:/etc/onnxserve/keys.json",
        "tls.crt:/etc/letsencrypt/live/flights/fullchain.pem",  # Only root can read the folder.
        "tls.key:/etc/letsencrypt/live/flights/privkey.pem",
    ]
    assert "ONNXSERVE_SECRETS=%d" in lines(unit, "Environment")
    keys_file = (
        '"ONNXSERVE_KEYS_FILE=/run/credentials/onnxserve-flights.service/ONNXSERVE_KEYS_FILE"'
    )
    assert keys_file in lines(unit, "Environment")
    (served,) = load_specs(spec)
    assert served.server.keyfile == "/run/credentials/onnxserve-flights.service/tls.key"
    assert served.server.certfile == "/run/credentials/onnxserve-flights.service/tls.crt"
    assert served.container == EndpointSpec.model_fields["container"].default


def test_a_unit_of_another_workspace_has_a_name_a_spec_and_a_state_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_WORKSPACE", "team-a")
    files = FORMATS["systemd"](new_endpoint("flights", "models:/flight-delay/Production"), Place())
    unit = "etc/systemd/system/onnxserve-team-a_flights.service"
    spec = "etc/onnxserve/team-a_flights.yaml"
    assert set(files) == {unit, spec}
    assert lines(files[unit], "StateDirectory") == ["onnxserve-team-a_flights"]
    assert f"--spec /{spec} " in files[unit]
    assert load_specs(files[spec])[0].name == "flights"


def test_without_auth_it_listens_on_this_machine_alone() -> None:
    (served,) = load_specs(rendered()[1])
    assert (served.server.host, served.server.port, served.server.insecure) == (
        "127.0.0.1",
        8080,
        False,
    )


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_a_value_is_quoted_as_systemd_reads_it(value: str) -> None:
    endpoint = new_endpoint("flights", "models:/x/1", {"container.environment.A": f"x{value}"})
    (quoted,) = [
        line
        for line in lines(FORMATS["systemd"](endpoint, Place())[UNIT], "Environment")
        if '"A=' in line
    ]
    inner = re.fullmatch(r'"A=((?:[^"\\%\n\r]|\\["\\nr]|%%)*)"', quoted)
    assert inner is not None
    unescape = {
        r"\"": '"',
        r"\\": "\\",
        r"\n": "\n",
        r"\r": "\r",
        "%%": "%",
    }
    assert re.sub(r'\\["\\nr]|%%', lambda match: unescape[match[0]], inner[1]) == f"x{value}"


@pytest.mark.parametrize(
    ("model", "config", "names"),
    [
        ("models/flights", {}, ["variants.flights.model", "absolute path", "'models/flights'"]),
        ("/srv/my models", {}, ["'/srv/my models'", "a unit"]),
        (
            "models:/x/1",
            {"container.secrets.A": "store/uri"},
            ["'store/uri'", "a unit", "absolute path"],
        ),
        (
            "models:/x/1",
            {"container.image": "flights:3"},
            ["container.image", "/opt/onnxserve/bin/onnxserve"],
        ),
        ("models:/x/1", {"container.network": "front"}, ["container.network", "a unit"]),
        (
            "models:/x/1",
            {"container.environment.MLFLOW_WORKSPACE": "../team"},
            ["MLFLOW_WORKSPACE", "lower-case letters"],
        ),
        ("models:/x/1", {"server.host": "0.0.0.0"}, ["server.host 0.0.0.0", "all clients"]),
    ],
)
def test_spec_that_a_unit_cannot_hold_is_refused_in_one_line(
    model: str,
    config: dict[str, str],
    names: list[str],
) -> None:
    with refused(InvalidConfig, *names):
        rendered(config, model)


@pytest.mark.parametrize("field", ["port", "grpc_port", "metrics_port"])
def test_only_a_port_below_1024_needs_the_right_to_open_it(field: str) -> None:
    def unit(port: str) -> str:
        files = FORMATS["systemd"](
            new_endpoint("flights", "models:/f/1", {f"server.{field}": port}),
            Place(),
        )
        return files["etc/systemd/system/onnxserve-flights.service"]

    assert "CAP_NET_BIND_SERVICE" in unit("999")
    assert "CAP_NET_BIND_SERVICE" not in unit("9100")
