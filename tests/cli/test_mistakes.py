"""Tests of the one-line errors for typical mistakes of new users."""

import os
import signal
import socket
import subprocess
import sys

import joblib
import pytest

from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.store.database import open_store
from tests.support.commands import onnxserve, said
from tests.support.refusals import mentions

PROCESS = [sys.executable, "-m", "mlflow_deploy_plugin.cli"]


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


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("start fligths", ["no deployment", "'fligths'", "'flights'"]),
        *(
            (line, ["no endpoint", "'nope'", "flights"])
            for line in (
                "endpoint get nope",
                "endpoint traffic nope a=1",
                "endpoint follow nope --alias champion",
                "endpoint delete nope",
                "monitor list nope",
                "rollout status nope",
                "rollback nope",
                "alert silence nope --for 2h",
                "alert silences nope",
                "audit history nope",
                "render --for compose -n nope",
                "feedback nope -f labels.csv",
                "retrain run nope",
            )
        ),
        ("endpoint create x -C server.prot=1", ["'server.prot'", "'server.port'"]),
        ("endpoint create x -C traffic.a=1", ["endpoint 'x'", "deployment 'a'"]),
        ("feedback flights -f labels", ["file labels", "No such file"]),
        (
            "monitor backfill flights typo --from 2013-07-01",
            ["'flights'", "'typo'", "onnxserve monitor add"],
        ),
        ("alert unsilence 7", ["silence 7", "`onnxserve alert silences`"]),
        ("wrap typo.joblib", ["file typo.joblib"]),
        ("wrap pair.joblib --allow-pickle --register x", ["pair.joblib", "a model", "tuple"]),
        (r"wrap '\\files\churn' --register x", [r"\\files\churn", "Windows", "s3://"]),
        (r"serve 'C:\models\churn'", [r"C:\models\churn", "Windows", "s3://"]),
        ("serve --registry champion", ["'champion'", "'@champion'"]),
        ("serve models:/churn/champion", ["'champion'", "models:/churn@champion"]),
        ("fetch cancer f", ["cancer does not exist", "models:/cancer@ALIAS"]),
        ("serve pair.joblib", ["pair.joblib", "--allow-pickle"]),
        ("render --for compose cancer", ["'cancer'", "models:/NAME@ALIAS"]),
        ("serve --spec .", ["spec .", "Is a directory"]),
        ("render --for compose --spec none.yaml", ["spec none.yaml"]),
        ("render --for compose models:/x/1 --folder /proc", ["/proc"]),
        ("keys create 'a b'", ["letters, digits"]),
        ("keys revoke nope", ["'nope'"]),
        ("size m --rate 5 --p99 0", ["--p99", "20ms", "1.5s"]),
        ("size m --rate 5 --p99 1s -C server.device=cuda", ["cuda"]),
    ],
)
def test_impossible_command_is_refused_in_one_line(line, names):
    assert mentions(said(onnxserve(line)), *names)


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("lsit", ["'lsit'", "`onnxserve list`"]),
        ("deploy", ["'deploy'", "`mlflow deployments create -t onnxserve --name NAME`"]),
        ("zzz", ["'zzz'", "`onnxserve --help`"]),
        (
            "monitor create flights",
            ["'create'", "add, backfill, expire, list, pause, remove, resume, run"],
        ),
        ("serve", ["MODEL", "models:/NAME@champion", "--spec FILE", "--registry @ALIAS"]),
        ("serve --registry @champion --only churn", ["--only", "pattern"]),
        ("serve --spec s.yaml --name x", ["--name", "MODEL"]),
        ("predict", ["MODEL", "-n DEPLOYMENT"]),
        ("predict x -n y", ["MODEL", "-n DEPLOYMENT"]),
        ("predict x --event-time at", ["--event-time", "-n DEPLOYMENT"]),
        ("render --for helm", ["MODEL", "--spec FILE", "-n NAME"]),
        ("batch m -i i --folder o --keep 'id, id'", ["--keep id, id", "repeated"]),
        ("retrain flights", ["'flights'", "`onnxserve retrain run flights`"]),
        ("promote churn 3 --to @champion", ["'churn'", "models:/churn/VERSION"]),
        ("gate models:/churn", ["'models:/churn'", "models:/churn@ALIAS"]),
        ("request approve ./churn --to @a", ["'./churn'", "models:/NAME/VERSION"]),
        ("rollout flights --to 2", ["'flights'", "start", "`onnxserve rollout status flights`"]),
        ("drift run flights --rows a.csv", ["--rows", "--reference"]),
        ("optimize models:/m/1", ["--int8", "--fp16"]),
        ("audit history flights --verify", ["--verify"]),
        ("promote models:/m/1 --to Production --force", ["--force", "--why REASON"]),
        ("promote models:/m/1 --to Production --wait nan", ["'--wait'", "'nan'"]),
        ("drift run flights --false-alarm-rate 1", ["'--false-alarm-rate'", "0<x<1"]),
        ("alert silence flights --for soon", ["--for", "'soon'", "30s, 5m, 1h, 90d or 1w"]),
        ("log errors flights --last 0s", ["--last", "'0s'"]),
        ("log query flights rows.txt", ["rows.txt", "-o csv"]),
        ("monitor expire --keep 1d", ["--keep 1d", "short"]),
        ("monitor backfill flights d --from now", ["'now'", "2013-07-01T12:00"]),
        ("monitor run flights --window soon", ["window 'soon'", "START/END"]),
        ("keys create ci --limit fast", ["--limit fast", "100/second"]),
        (
            "robustness m --data d.csv --target y --strengths noise=lots",
            ["'noise=lots'", "NAME=STRENGTH"],
        ),
        ("build-docker m -n x:1 --follow --test", ["--test", "--follow"]),
        ("build-docker m -n x:1 --env-manager uv --test", ["--test", "--env-manager"]),
        *((f"size m --p99 1s --rate {rate}", ["--rate"]) for rate in ("0", "nan", "inf")),
    ],
)
def test_wrong_usage_is_refused(line, names):
    result = onnxserve(line)
    assert result.exit_code == 2
    assert result.stdout == ""
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    assert mentions(last, *names)


MOVED = """\
history → `onnxserve audit history`
card → `onnxserve audit card`
silence → `onnxserve alert silence`
errors → `onnxserve log errors`
status → `onnxserve rollout status`
pause → `onnxserve rollout pause` or `onnxserve monitor pause`
retrainings → `onnxserve retrain`
undeploy → `onnxserve delete`
models serve -m m → `onnxserve serve`
convert m → `onnxserve wrap`
endpoint creat x → `onnxserve endpoint create`
drift flights → `onnxserve drift run flights`
log flights → `onnxserve log query flights`
logs e --tail 5 → did you mean '--lines'?
histroy → `onnxserve audit history`
create → `mlflow deployments create -t onnxserve --name NAME`
xyzzy → `onnxserve --help`
serve -m models:/x/1 → MODEL is an argument: `onnxserve serve [MODEL]`
predict --model-uri m → MODEL is an argument: `onnxserve predict [MODEL]`
build-docker -m m -n x → MODEL is an argument: `onnxserve build-docker MODEL`
render --model m → MODEL is an argument: `onnxserve render [MODEL]`
delete --name flights → NAME is an argument: `onnxserve delete NAME`
monitor run -n flights → NAME is an argument: `onnxserve monitor run NAME`
batch m -i a --output b → did you mean '--folder'?
batch m --input-path a → did you mean '--input'?
predict m --folder b → did you mean '--output-path'?
serve m --no-conda → did you mean '--env-manager'?
serve m --wrokers 2 → did you mean '--workers'?
serve m --zzz → `onnxserve serve --help`
"""
"""Commands and options of earlier commits, of MLflow and of habit, and their place."""


@pytest.mark.parametrize(("line", "place"), [row.split(" → ") for row in MOVED.splitlines()])
def test_moved_commands_name_their_place(line, place):
    result = onnxserve(line)
    assert result.exit_code == 2
    assert place in result.stderr.splitlines()[-1]


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
def test_empty_result_is_one_line(line, names):
    result = onnxserve(line)

    assert result.exit_code == 0
    assert result.output.count("\n") == 1
    assert mentions(result.output, *names)


@pytest.mark.long
def test_ctrl_c_ends_a_command_by_sigint():
    """A loop of the shell then ends too."""
    command = [*PROCESS, "promote", "models:/m/1", "--to", "Staging"]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
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
def test_full_output_device_is_reported():
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [*PROCESS, "list"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
    assert ended.returncode == 1
    assert mentions(ended.stderr, "the output", "No space left")
