"""Tests of the output of `onnxserve gate` and `promote`. See tests/promote/gate for the
gate.
"""

import json
import os
from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result
from mlflow import MlflowClient

from mlflow_deploy_plugin.cli.commands import main
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.store.database import open_store
from tests.support.classifiers import labelled, registered_toy, write_rows
from tests.support.refusals import mentions
from tests.support.tracking import tracking_at

Command = Callable[..., Result]


@pytest.fixture(scope="module")
def toy(tmp_path_factory, new_database):
    """The command, on a registry whose `toy` 1 is in Production; 2 is as good, and 3
    was not proven.
    """
    folder = tmp_path_factory.mktemp("gate")
    with pytest.MonkeyPatch.context() as patch, tracking_at(new_database(folder)):
        patch.setenv("ONNXSERVE_HOME", str(folder / "home"))
        patch.chdir(folder)
        registered_toy(MlflowClient(), folder)
        (folder / "cheap.yaml").write_text("skip: [evaluation, robustness, budget]")
        rows = write_rows(folder / "rows.parquet", labelled(200))
        attack = f"{{disturbances: {{fgsm: 0.1}}, dataset: {rows}, target: label}}"
        (folder / "attack.yaml").write_text(f"robustness: {attack}\nskip: [budget]")
        yield lambda *arguments: CliRunner().invoke(main, list(arguments))


def test_each_check_is_a_line_and_the_steps_go_to_stderr(toy):
    done = toy("gate", "models:/toy/2", "--policy", "cheap.yaml")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert mentions(lines[0], "toy version 2", "passed", "models:/toy/1")
    assert [line.split()[:2] for line in lines[1:6]] == [
        ["passed", "parity"],
        ["passed", "signature"],
        ["skipped", "evaluation"],
        ["skipped", "robustness"],
        ["skipped", "budget"],
    ]
    assert lines[6] == "  policy: cheap.yaml"
    assert lines[7].startswith("  report: run ")
    assert mentions(done.stderr, "fetching", "version 2", "version 1")


def test_a_failed_gate_is_exit_status_1(toy):
    done = toy("gate", "models:/toy/3", "--policy", "cheap.yaml", "-o", "json")
    assert done.exit_code == 1
    document = json.loads(done.stdout)
    assert document["state"] == "failed"
    parity = document["checks"][0]
    assert mentions(parity.pop("reason"), "warned", "1,000 rows", "proven")
    assert parity == {
        "name": "parity",
        "state": "failed",
        "figures": {"rows": 1000.0},
        "notes": [],
        "table": None,
    }


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("models:/toy/2", "--policy", "none.yaml"), ["policy none.yaml"]),
        (("models:/toy/9",), ["model toy", "version 9"]),
        (("models:/toy@none",), ["model toy", "alias none"]),
        (
            ("models:/toy/2", "--against", "models:/toy"),
            ["'models:/toy'", "does not select a version"],
        ),
    ],
)
def test_a_mistake_is_one_line(arguments, names, toy):
    done = toy("gate", *arguments)
    assert done.exit_code == 1
    assert mentions(done.stderr.splitlines()[-1], "Error", *names)
    assert done.stdout == ""


@pytest.mark.parametrize(
    "arguments", [("gate", "models:/toy/3"), ("promote", "models:/toy/3", "--to", "Production")]
)
def test_a_torch_original_that_the_version_does_not_name_can_be_given(arguments, toy):
    done = toy(*arguments, "--policy", "attack.yaml", "--original", "/gone")
    assert done.exit_code == 1
    assert mentions(done.stdout + done.stderr, "torch original", "/gone")


@pytest.mark.parametrize(
    "arguments", [("gate", "models:/toy/2"), ("promote", "models:/toy/2", "--to", "Production")]
)
def test_unreachable_mlflow_is_a_one_line_error_without_a_long_wait(arguments, toy, monkeypatch):
    for name in ("MAX_RETRIES", "BACKOFF_FACTOR", "TIMEOUT"):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", "")
        del os.environ[f"MLFLOW_HTTP_REQUEST_{name}"]
    with tracking_at("http://127.0.0.1:9"):
        done = toy(*arguments)
        # MLflow's default of 7 takes minutes.
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert line.endswith(" does not answer correctly: connection refused")


def test_dry_run_of_a_promotion_changes_nothing(toy):
    promotion = ("promote", "models:/toy/2", "--dry-run", "--to")
    client = MlflowClient()
    client.set_registered_model_alias("toy", "challenger", "3")
    store = open_store(load_settings().store_url)
    store.add_endpoint("onnxserve", new_endpoint("flights", "models:/toy@challenger"))
    tags = client.get_model_version("toy", "2").tags
    events = [*store.events()]

    gated = toy(*promotion, "Production")
    ungated = toy(*promotion, "@challenger")
    there = toy("promote", "models:/toy@challenger", "--dry-run", "--to", "@challenger")

    _, gate, followers = gated.stdout.splitlines()
    assert gate.startswith("  gate: would be run; recorded: ")
    assert followers == "  deployments that follow models:/toy/Production: none"
    assert ungated.stdout.splitlines() == [
        "@challenger of toy would be version 2 (before: 3)",
        "  gate: not asked; the policy does not gate @challenger",
        "  deployments that follow models:/toy@challenger: flights/flights",
    ]
    assert there.stdout.startswith("@challenger of toy is version 3 already\n")
    assert client.get_model_version("toy", "2").tags == tags
    assert client.get_registered_model("toy").aliases["challenger"] == 3
    assert [*store.events()] == events
    store.remove_endpoint("flights")
    store.close()


def test_promote_reports_the_change_the_gate_and_the_followers(toy):
    done = toy("promote", "models:/toy/2", "--to", "Production", "--policy", "cheap.yaml")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert mentions(lines[0], "toy version 2", "Production", "version 1")
    assert lines[1].startswith(
        "  gate: passed without an evaluation; checked: parity, signature; not checked: evaluation"
    )
    assert mentions(lines[-1], "no deployment", "models:/toy/Production")


def test_promote_to_the_current_target_is_one_line_without_a_change(toy):
    toy("promote", "models:/toy/2", "--to", "@same")
    done = toy("promote", "models:/toy/2", "--to", "@same")
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        (
            "toy version 2 has the alias @same already: no change (gate: not asked; the policy "
            "does not gate @same)"
        )
    ]


def test_gate_of_the_only_served_version_is_one_line_and_json(toy):
    toy("promote", "models:/toy/2", "--to", "Production", "--policy", "cheap.yaml")
    done = toy("gate", "models:/toy/2", "--policy", "cheap.yaml")
    assert done.exit_code == 0
    (line,) = done.stdout.splitlines()
    assert line.startswith(
        "toy version 2 is the served version (Production), and there is no version to compare"
    )
    document = json.loads(
        toy("gate", "models:/toy/2", "--policy", "cheap.yaml", "-o", "json").stdout
    )
    assert document["version"] == "2"
    assert document["stands"] == "Production"
    assert document["state"] == "passed without an evaluation"


def test_promote_tells_of_a_deployment_that_follows_and_does_not_run(toy):
    store = open_store(load_settings().store_url)
    store.add_endpoint("onnxserve", new_endpoint("sleeping", "models:/toy/staging"))
    store.add_endpoint("onnxserve", new_endpoint("pinned", "models:/toy/1"))
    done = toy("promote", "models:/toy/2", "--to", "Staging", "--policy", "cheap.yaml")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[:2] == [
        "toy version 2 is in Staging",
        "  gate: not asked; the policy does not gate Staging",
    ]
    assert lines[2].startswith("  sleeping/sleeping is not running after ")
    assert len(lines) == 3
    for name in ("sleeping", "pinned"):
        store.remove_endpoint(name)
    store.close()


def test_promote_that_is_refused_is_exit_status_1(toy):
    done = toy("promote", "models:/toy/3", "--to", "Production", "--policy", "cheap.yaml")
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith(
        "Error: toy version 3 cannot be promoted to Production"
    )
    forced = toy(
        "promote", "models:/toy/3", "--to", "Production", "--force", "--policy", "cheap.yaml"
    )
    assert forced.exit_code == 2
    assert forced.stderr.splitlines()[-1] == "Error: --force requires --why REASON"
