"""Tests of the one-line errors for typical mistakes of new users."""

import os
import signal
import socket
import subprocess
import sys

import joblib
import pytest
from click.testing import CliRunner

from mlflow_deploy_plugin.cli.commands import main
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.store.database import open_store
from tests.support.commands import said
from tests.support.refusals import mentions


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home with the endpoint `flights`, which no server runs for."""
    folder = tmp_path_factory.mktemp("mistakes")
    store = open_store(f"sqlite:///{folder}/onnxserve.db")
    store.add_endpoint("onnxserve", new_endpoint("flights", "m", {"server.port": 8080}))
    store.close()
    joblib.dump((1, "a"), folder / "pair.joblib")
    return folder


@pytest.fixture(autouse=True)
def here(home, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_HOME", str(home))
    monkeypatch.chdir(home)


def typed(line):
    return CliRunner().invoke(main, line.split())


def usage_error(line):
    """Return the last line on stderr, behind "Error: ", of a command that ends with 2
    and prints nothing else.
    """
    result = typed(line)
    assert result.exit_code == 2
    assert result.stdout == ""
    start, error, message = result.stderr.splitlines()[-1].partition("Error: ")
    assert start == ""
    assert error == "Error: "
    return message


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("lsit", ["'lsit'", "'list'"]),
        ("deploy", ["'deploy'", "`mlflow deployments create -t onnxserve --name NAME`"]),
        ("zzz", ["'zzz'", "`onnxserve --help`"]),
        (
            "monitor create flights",
            ["'create'", "add, backfill, expire, list, pause, remove, resume, run"],
        ),
    ],
)
def test_a_command_that_there_is_not_is_answered_with_the_one_that_is_meant(line, names):
    assert mentions(usage_error(line), *names)


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("start fligths", ["no deployment", "'fligths'", "'flights'"]),
        ("stop nope", ["no deployment", "'nope'", "flights"]),
        ("predict -n nope -i rows.csv", ["no deployment", "'nope'", "flights"]),
        *(
            (line, ["no endpoint", "'nope'", "flights"])
            for line in (
                "endpoint get nope",
                "monitor list nope",
                "rollout status nope",
                "rollback nope",
                "alert silence nope --for 2h",
                "alert silences nope",
                "audit history nope",
            )
        ),
        ("feedback flights -f labels", ["file labels", "No such file"]),
        (
            "monitor backfill flights typo --from 2013-07-01",
            ["'flights'", "'typo'", "onnxserve monitor add"],
        ),
        ("alert unsilence 7", ["silence 7", "`onnxserve alert silences`"]),
        ("audit history flihgts", ["no endpoint", "'flihgts'", "'flights'"]),
        ("feedback nope -f labels.csv", ["no endpoint", "'nope'", "flights", "--url"]),
        ("monitor remove flights daily", ["'flights'", "'daily'", "onnxserve monitor add"]),
        ("wrap typo.joblib", ["file typo.joblib"]),
        ("serve --spec .", ["spec .", "Is a directory"]),
        (r"serve C:\models\churn", [r"C:\models\churn", "Windows", "s3://"]),
        (r"wrap \\files\churn --register x", [r"\\files\churn", "Windows", "s3://"]),
        ("wrap pair.joblib --allow-pickle --register x", ["pair.joblib", "a model", "tuple"]),
    ],
)
def test_a_mistake_is_one_line_with_a_way_out_and_exit_status_1(line, names):
    assert mentions(said(typed(line)), *names)


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("serve", ["MODEL", "--spec FILE"]),
        ("serve --spec s.yaml --name x", ["--name", "MODEL"]),
        ("predict", ["MODEL", "-n DEPLOYMENT"]),
        ("predict x -n y", ["MODEL", "-n DEPLOYMENT"]),
        ("render --for helm", ["MODEL", "--spec FILE", "-n NAME"]),
        ("batch m -i i --folder o --device openvino", ["--device", "'cpu', 'cuda'"]),
        ("retrain flights", ["'flights'", "`onnxserve retrain run flights`"]),
        ("promote churn 3 --to @champion", ["'churn'", "models:/churn/VERSION"]),
        ("gate models:/churn", ["'models:/churn'", "models:/churn@ALIAS"]),
        ("request approve ./churn --to @a", ["'./churn'", "models:/NAME/VERSION"]),
        ("rollout flights --to 2", ["'flights'", "start", "`onnxserve rollout status flights`"]),
        ("monitor run-due flights --window 2013-07-01/1d", ["--window"]),
        ("alert silence flights", ["--for"]),
        ("alert silence --for 2h", ["NAME"]),
        ("alert unsilence", ["ID"]),
        ("optimize models:/m/1", ["--int8", "--fp16"]),
    ],
)
def test_options_that_are_missing_or_do_not_go_together_are_a_usage_error(line, names):
    assert mentions(usage_error(line), *names)


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("rollout start flights --to 2 --steps 0,50", ["--steps 0,50", "1", "100"]),
        ("rollout start flights --to 2 --steps 50,10", ["--steps 50,10", "1", "100"]),
        ("rollout start flights --to 2 --every 5", ["--every", "'5'", "30s"]),
        ("rollout start flights --to 2 --every soon", ["--every", "'soon'", "30s"]),
        ("rollout start flights --to 2 --abort-on errors>1%", ["--abort-on", "'errors>1%'"]),
        ("optimize models:/m/1 --fp16 --max-loss -1", ["'--max-loss'", "-1.0", "x>=0"]),
        ("promote models:/m/1 --to Production --force", ["--force", "--why REASON"]),
        ("alert silence flights --for soon", ["--for", "'soon'", "30s, 5m, 1h, 90d or 1w"]),
        ("log expire flights --keep 5", ["--keep", "'5'", "90d"]),
        ("log stats flights --since soon", ["--since", "'soon'"]),
        ("monitor expire --keep 1d", ["--keep 1d", "short"]),
        ("monitor backfill flights d --from now", ["'now'", "2013-07-01T12:00"]),
        ("log query flights rows.txt", ["rows.txt", "-o csv"]),
        ("retrain run flights --window soon", ["window 'soon'"]),
        ("monitor run flights --window soon", ["window 'soon'", "START/END"]),
        ("keys create ci --expires soon", ["--expires", "'soon'"]),
        ("keys create ci --limit fast", ["--limit fast"]),
        (
            "robustness m --data d.csv --target y --strengths noise=lots",
            ["'noise=lots'", "NAME=STRENGTH"],
        ),
        ("endpoint create e -C capture", ["-C", "'capture'", "KEY=VALUE"]),
        ("endpoint traffic flights a", ["traffic", "'a'", "KEY=VALUE"]),
    ],
)
def test_a_value_that_makes_no_sense_for_its_option_is_a_usage_error(line, names):
    assert mentions(usage_error(line), *names)


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ("controller --lease-seconds nan", "--lease-seconds"),
        ("promote models:/m/1 --to Production --wait nan", "--wait"),
        ("drift run flights --false-alarm-rate nan", "--false-alarm-rate"),
    ],
)
def test_a_number_that_is_none_is_refused(line, option):
    assert mentions(usage_error(line), f"'{option}'", "'nan'")


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("alert silences", ["no silence", "`onnxserve alert silence NAME --for 2h`"]),
        ("alert silences flights", ["no silence", "`onnxserve alert silence flights --for 2h`"]),
        ("monitor list", ["no monitors", "onnxserve monitor add NAME MONITOR"]),
        ("retrain list", ["no retrainings"]),
        ("logs flights", ["flights", "empty"]),
    ],
)
def test_commands_with_no_results_print_one_line_and_succeed(line, names):
    result = typed(line)

    assert result.exit_code == 0
    assert result.output.count("\n") == 1
    assert mentions(result.output, *names)


@pytest.mark.long
def test_ctrl_c_ends_a_command_as_sigint_does_so_that_a_loop_of_the_shell_ends():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        command = [
            sys.executable,
            "-m",
            "mlflow_deploy_plugin.cli",
            "promote",
            "models:/m/1",
            "--to",
            "Staging",
        ]
        where = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=os.environ | where
        ) as process:
            connection, _ = silent.accept()
            process.send_signal(signal.SIGINT)
            _, message = process.communicate(timeout=60)
            connection.close()
    assert process.returncode == -signal.SIGINT
    assert message == "\nAborted!\n"


@pytest.mark.long
def test_full_output_device_is_a_one_line_error():
    command = [sys.executable, "-m", "mlflow_deploy_plugin.cli", "list"]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60
        )
    assert ended.returncode == 1
    assert mentions(ended.stderr, "the output", "No space left")
