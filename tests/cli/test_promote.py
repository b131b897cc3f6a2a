"""Tests of `onnxserve gate`, `promote` and `diff`. See tests/promote."""

import json
import os

import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.spec.document import new_endpoint
from tests.support.classifiers import labelled, registered_toy, write_rows
from tests.support.commands import done, onnxserve, said, told
from tests.support.refusals import mentions
from tests.support.stores import own_store
from tests.support.tracking import tracking_at


@pytest.fixture(scope="module", autouse=True)
def toy(tmp_path_factory, new_database):
    """A registry whose `toy` 1 is in Production; 2 is as good, and 3 was not proven.
    `pair` has the same versions.
    """
    folder = tmp_path_factory.mktemp("gate")
    with pytest.MonkeyPatch.context() as patch, tracking_at(new_database(folder)):
        patch.setenv("ONNXSERVE_HOME", str(folder / "home"))
        patch.chdir(folder)
        registered_toy(MlflowClient(), folder)
        for name, versions in (("other", 1), ("pair", 3)):
            MlflowClient().create_registered_model(name)
            for number in range(versions):
                MlflowClient().create_model_version(name, (folder / str(number)).as_uri())
        example = {"dataframe_split": {"columns": ["a", "b"], "data": [[1.0, 0.0]]}}
        (folder / "2" / "serving_input_example.json").write_text(json.dumps(example))
        (folder / "cheap.yaml").write_text("skip: [evaluation, robustness, budget]")
        rows = write_rows(folder / "rows.parquet", labelled(200))
        attack = f"{{disturbances: {{fgsm: 0.1}}, dataset: {rows}, target: label}}"
        (folder / "attack.yaml").write_text(f"robustness: {attack}\nskip: [budget]")
        yield


@pytest.fixture
def store():
    with own_store() as opened:
        yield opened


def test_gate_prints_a_line_per_check():
    result = onnxserve("gate models:/toy/2 --policy cheap.yaml")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
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
    assert mentions(result.stderr, "fetching", "version 2", "version 1")


def test_failed_gate_is_exit_status_1():
    result = onnxserve("gate models:/toy/3 --policy cheap.yaml -o json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["state"] == "failed"
    parity = document["checks"][0]
    assert mentions(parity["reason"], "warned", "1,000 rows", "proven")
    assert (parity["name"], parity["state"]) == ("parity", "failed")
    assert parity["figures"] == {"rows": 1000.0}


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("gate models:/toy/2 --policy none.yaml", ["policy none.yaml"]),
        ("gate models:/toy/9", ["model toy", "version 9"]),
        (
            "gate models:/toy/2 --against models:/toy",
            ["'models:/toy'", "does not select a version"],
        ),
        ("diff models:/toy/1 runs:/abc/model", ["abc"]),
    ],
)
def test_unusable_version_or_policy_is_refused(line, names):
    result = onnxserve(line)
    assert result.exit_code == 1
    assert mentions(result.stderr.splitlines()[-1], "Error", *names)
    assert result.stdout == ""


@pytest.mark.parametrize("command", ["gate models:/toy/3", "promote models:/toy/3 --to Production"])
def test_original_model_can_be_named(command):
    result = onnxserve(f"{command} --policy attack.yaml --original /gone")
    assert result.exit_code == 1
    assert mentions(result.output, "torch original", "/gone")


@pytest.mark.parametrize("command", ["gate models:/toy/2", "promote models:/toy/2 --to Production"])
def test_unreachable_mlflow_is_retried_once(command, monkeypatch):
    for name in ("MAX_RETRIES", "BACKOFF_FACTOR", "TIMEOUT"):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", "")
        del os.environ[f"MLFLOW_HTTP_REQUEST_{name}"]
    with tracking_at("http://127.0.0.1:9"):
        message = said(onnxserve(command))
        # MLflow's default of 7 takes minutes.
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"
    assert message.endswith(" does not answer correctly: connection refused")


def test_promotion_dry_run_changes_nothing(store):
    command = "promote models:/toy/2 --dry-run --to"
    client = MlflowClient()
    client.set_registered_model_alias("toy", "challenger", "3")
    store.add_endpoint("onnxserve", new_endpoint("flights", "models:/toy@challenger"))
    tags = client.get_model_version("toy", "2").tags
    events = [*store.events()]

    gated = done(f"{command} Production")
    ungated = done(f"{command} @challenger")
    there = done("promote models:/toy@challenger --dry-run --to @challenger")

    _, gate, followers = gated.splitlines()
    assert gate.startswith("  gate: would be run; recorded: ")
    assert followers == "  deployments that follow models:/toy/Production: none"
    moved, gate, followers = ungated.splitlines()
    assert mentions(moved, "@challenger of toy", "version 2", "before: 3")
    assert mentions(gate, "not asked", "@challenger")
    assert followers == "  deployments that follow models:/toy@challenger: flights/flights"
    assert there.startswith("@challenger of toy is version 3 already\n")
    assert client.get_model_version("toy", "2").tags == tags
    assert client.get_registered_model("toy").aliases["challenger"] == 3
    assert [*store.events()] == events
    store.remove_endpoint("flights")


def test_promotion_reports_gate_and_followers():
    command = "promote models:/toy/2 --to Production --policy cheap.yaml"
    change, gate, *_, followers = done(command).splitlines()
    assert mentions(change, "toy version 2", "Production", "version 1")
    checks = "checked: parity, signature; not checked: evaluation"
    assert gate.startswith(f"  gate: passed without an evaluation; {checks}")
    assert mentions(followers, "no deployment", "models:/toy/Production")

    # The version is now the only one that is served.
    (line,) = done("gate models:/toy/2 --policy cheap.yaml").splitlines()
    document = told("gate models:/toy/2 --policy cheap.yaml")
    assert mentions(line, "toy version 2", "Production", "no version to compare")
    assert document["version"] == "2"
    assert document["stands"] == "Production"
    assert document["state"] == "passed without an evaluation"


def test_repeated_promotion_changes_nothing():
    done("promote models:/toy/2 --to @same")
    (line,) = done("promote models:/toy/2 --to @same").splitlines()
    assert mentions(line, "toy version 2", "@same", "no change", "not asked")


def test_stopped_follower_is_reported(store):
    store.add_endpoint("onnxserve", new_endpoint("sleeping", "models:/toy/staging"))
    store.add_endpoint("onnxserve", new_endpoint("pinned", "models:/toy/1"))
    command = "promote models:/toy/2 --to Staging --policy cheap.yaml"
    moved, gate, follower = done(command).splitlines()
    assert moved == "toy version 2 is in Staging"
    assert gate == "  gate: not asked; the policy does not gate Staging"
    assert follower.startswith("  sleeping/sleeping is not running after ")
    for name in ("sleeping", "pinned"):
        store.remove_endpoint(name)


def test_refused_promotion_is_exit_status_1():
    refused = onnxserve("promote models:/toy/3 --to Production --policy cheap.yaml")
    assert refused.exit_code == 1
    assert mentions(refused.stderr.splitlines()[-1], "Error", "toy version 3", "Production")


def test_diff_shows_changed_facts():
    shown = done("diff models:/pair/1 models:/pair/3")
    lines = [line.split() for line in shown.splitlines()]
    assert lines[0][:2] == ["version", "3"]
    assert lines[1] == ["SECTION", "NAME", "models:/pair/1", "models:/pair/3", "TREND"]
    assert lines[2:6] == [
        ["parity", "state", "proven", "warned"],
        ["OUTPUT", "CHANGED", "ROWS", "LARGEST", "DIFFERENCE"],
        ["label", "0", "of", "1", "–"],
        ["probabilities", "0", "of", "1", "0"],
    ]
    assert mentions(shown, "onnxserve gate models:/pair/3")
    complete = done("diff models:/pair/1 models:/pair/3 --all")
    assert ["parity", "rows", "1000", "1000"] in [line.split() for line in complete.splitlines()]


def test_diff_as_json_has_numbers():
    document = told("diff models:/pair/1 models:/pair/3 --all")
    (operator,) = [row for row in document["rows"] if row["name"] == "operator MatMul"]
    assert operator["before"] == operator["after"] == 1
    assert operator["is_changed"] is False
    assert mentions(document["sentence"], "version 3", "neither better nor worse")
    assert document["disagreement"] == 0.0
    assert document["predictions"][1]["output"] == "probabilities"
    document = told("diff models:/pair/1 models:/pair/2")
    assert document["rows"] == []
    assert mentions(document["predictions"]["reason"], "input_example")
