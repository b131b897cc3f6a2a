"""What is refused before anything is changed, whether a server runs or not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mlflow_deploy_plugin.cli import main
from mlflow_deploy_plugin.deployments import Deployments, open_deployments
from mlflow_deploy_plugin.errors import InvalidConfig, NotFound
from mlflow_deploy_plugin.spec import new_endpoint


@pytest.fixture
def deployments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployments]:
    """With the endpoint `flights`, whose server was never started."""
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path / "home"))
    with open_deployments(print) as opened:
        opened.store.add_endpoint("onnxserve", new_endpoint("flights", "models:/X/1"))
        yield opened


@pytest.mark.parametrize("name", ["../../stolen", "/../stolen", "a/b", "w" * 3000])
def test_a_name_that_no_endpoint_has_touches_no_file(deployments: Deployments, tmp_path: Path, name: str) -> None:
    (tmp_path / "stolen.lock").touch()

    deployments.delete_endpoint(name)
    for change in (lambda: deployments.update_endpoint(name, {}), lambda: deployments.remove(name, "x")):
        with pytest.raises(NotFound, match="there is no endpoint"):
            change()

    assert (tmp_path / "stolen.lock").exists()
    assert not (tmp_path / "home" / "deployments").exists()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"variants.flights.model": ""}, "no model is named; it is a registered model"),
        ({"traffic": {"flights": ""}}, "traffic of 'flights': a whole number from 0 to 100 is expected"),
        ({"traffic.flights": ""}, "traffic of 'flights': a whole number from 0 to 100 is expected"),
    ],
)
def test_nothing_said_is_no_model_and_no_share(deployments: Deployments, config: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidConfig, match=said):
        deployments.update_endpoint("flights", config)


def test_the_traffic_under_a_rollout_is_the_rollouts(deployments: Deployments) -> None:
    deployments.store.add_rollout("flights", {}, "stepping")

    for change in (
        lambda: deployments.set_traffic("flights", {"flights": 100}),
        lambda: deployments.update_endpoint("flights", {"traffic.flights": 100}),
        lambda: deployments.update("flights", None, {"variants.flights.weight": "100"}),
    ):
        with pytest.raises(InvalidConfig, match="is its rollout's, which is under way: `onnxserve rollout flights"):
            change()


@pytest.mark.parametrize("command", [("stop", "\udcff"), ("stop", "flights", "--why", "\udcff")])
def test_what_is_no_text_is_refused_before_anything_is_done(deployments: Deployments, command: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, command)

    assert (result.exit_code, result.output) == (1, "Error: '\\udcff' is no valid text in UTF-8\n")
    assert [event.action for event in deployments.store.events()] == ["create"]
