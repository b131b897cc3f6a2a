"""What a new user mistypes, or has not set up yet: one line that says what is wrong, and what would be right."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mlflow_deploy_plugin.cli import main
from mlflow_deploy_plugin.spec import new_endpoint
from mlflow_deploy_plugin.store import open_store
from tests.support.refusals import mentions


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the endpoint `flights`, which no server runs for."""
    folder = tmp_path_factory.mktemp("mistakes")
    store = open_store(f"sqlite:///{folder}/onnxserve.db")
    store.add_endpoint("onnxserve", new_endpoint("flights", "m", {"server.port": 8080}))
    store.close()
    return folder


@pytest.fixture(autouse=True)
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXSERVE_HOME", str(home))
    monkeypatch.chdir(home)


def typed(line: str) -> Result:
    return CliRunner().invoke(main, line.split())


def usage_error(line: str) -> str:
    """Return the last line on stderr, behind "Error: ", of a command that ends with 2 and prints nothing else."""
    result = typed(line)
    assert (result.exit_code, result.stdout) == (2, "")
    start, error, said = result.stderr.splitlines()[-1].partition("Error: ")
    assert (start, error) == ("", "Error: ")
    return said


DUE = "--due judges what is due, in lines and here: it takes no --window, -o or --engine"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("lsit", "there is no command 'lsit'; did you mean 'list'?"),
        (
            "deploy",
            "there is no command 'deploy'; MLflow's own is meant: `mlflow deployments create -t onnxserve --name NAME`",
        ),
        ("zzz", "there is no command 'zzz'; `onnxserve --help` lists them"),
        (
            "monitor create flights",
            "there is no command 'create'; there are add, backfill, expire, list, pause, remove, resume, run",
        ),
        (
            "delete flights",
            "there is no command 'delete'; MLflow's own is meant: `mlflow deployments delete -t onnxserve --name NAME`",
        ),
    ],
)
def test_a_command_that_there_is_not_is_answered_with_the_one_that_is_meant(line: str, said: str) -> None:
    assert usage_error(line) == said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("start fligths", "there is no deployment 'fligths'; did you mean 'flights'?"),
        ("stop nope", "there is no deployment 'nope'; the deployments are: flights"),
        ("predict -n nope -i rows.csv", "the file rows.csv cannot be read: No such file or directory"),
        ("endpoint get nope", "there is no endpoint 'nope'; there are flights"),
        ("monitor list nope", "there is no endpoint 'nope'; there are flights"),
        ("rollout nope --status", "there is no endpoint 'nope'; there are flights"),
        ("feedback flights -f labels", "the file labels cannot be read: No such file or directory"),
        (
            "monitor backfill flights typo --from 2013-07-01",
            "endpoint 'flights' has no monitor 'typo'; onnxserve monitor add makes one",
        ),
        ("rollback nope", "there is no endpoint 'nope'; there are flights"),
        ("silence nope --for 2h", "there is no endpoint 'nope'; there are flights"),
        ("silence nope --list", "there is no endpoint 'nope'; there are flights"),
        ("silence --remove 7", "there is no silence 7; onnxserve silence --list shows those that hold"),
        ("history nope", "there is no endpoint 'nope'; there are flights"),
        ("history flihgts", "there is no endpoint 'flihgts'; did you mean 'flights'?"),
        ("feedback nope -f labels.csv", "there is no endpoint 'nope'; there are flights; or say --url"),
        ("monitor remove flights daily", "endpoint 'flights' has no monitor 'daily'; onnxserve monitor add makes one"),
        ("wrap typo.joblib", "the file typo.joblib does not exist"),
        ("serve --spec .", "the spec . cannot be read: Is a directory"),
    ],
)
def test_a_mistake_is_one_line_with_a_way_out_and_exit_status_1(line: str, said: str) -> None:
    result = typed(line)

    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"Error: {said}\n")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("serve", "give either -m MODEL_URI or --spec FILE"),
        ("serve --spec s.yaml --name x", "--name goes with -m; a spec names its endpoints itself"),
        ("predict", "say either -m MODEL_URI or -n DEPLOYMENT"),
        ("predict -m x -n y", "say either -m MODEL_URI or -n DEPLOYMENT"),
        ("render --for helm", "give -m MODEL_URI, --spec FILE, or -n NAME of a stored endpoint"),
        (
            "log query flights --sql x --where y",
            "--sql is the whole statement: leave --where, --select and --order-by out",
        ),
        ("monitor run flights --due -o json", DUE),
        ("monitor run flights --due --engine spark", DUE),
        (
            "optimize models:/m/1",
            "say which form: --int8 dynamic|static, --fp16 or --prune SHARE; or --auto, which tries all",
        ),
        (
            "optimize models:/m/1 --auto --fp16",
            "say which form: --int8 dynamic|static, --fp16 or --prune SHARE; or --auto, which tries all",
        ),
    ],
)
def test_options_that_are_missing_or_do_not_go_together_are_a_usage_error(line: str, said: str) -> None:
    assert usage_error(line) == said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("rollout flights --to 2 --steps 0,50", "--steps 0,50: they must rise, from at least 1 to at most 100"),
        ("rollout flights --to 2 --steps 50,10", "--steps 50,10: they must rise, from at least 1 to at most 100"),
        ("rollout flights --to 2 --every 5", "--every 5: a duration like 30s, 5m or 1h is expected"),
        ("rollout flights --to 2 --every soon", "--every soon: a duration like 30s, 5m or 1h is expected"),
        ("rollout flights --to 2 --abort-on errors>1%", "--abort-on: 'errors>1%' is no criterion; what there is: "),
        ("optimize models:/m/1 --prune 1.5", "Invalid value for '--prune': 1.5 is not in the range 0<x<1."),
        ("optimize models:/m/1 --fp16 --max-loss -1", "Invalid value for '--max-loss': -1.0 is not in the range x>=0."),
        ("promote m 1 --to Production --force", "--force needs its reason: --why REASON"),
        ("silence flights --for soon", "--for 'soon' cannot be read; a duration like 30s, 5m, 1h or 90d is expected"),
        ("log expire flights --keep 5", "--keep '5' cannot be read; a duration like"),
        ("log stats flights --since soon", "--since 'soon' cannot be read"),
        ("monitor expire --keep 1d", "--keep 1d is too short"),
        ("monitor backfill flights d --from now", "'now' is not a time: 2013-07-01 or 2013-07-01T12:00, in UTC"),
        ("log query flights rows.txt", "a table is for people: with a file, here rows.txt, say -o csv"),
        ("retrain flights --window soon", "window 'soon': "),
        ("monitor run flights --window soon", "window 'soon': a window is START/END"),
        ("keys create ci --expires soon", "--expires 'soon' cannot be read"),
        ("keys create ci --limit fast", "--limit fast: a rate is expected"),
        (
            "robustness m --data d.csv --target y --strengths noise=lots",
            "--strengths 'noise=lots' is not NAME=STRENGTH",
        ),
        ("endpoint create e -C capture", "-C 'capture' is not KEY=VALUE"),
        ("endpoint traffic flights a", "traffic 'a' is not KEY=VALUE"),
    ],
)
def test_a_value_that_makes_no_sense_for_its_option_is_a_usage_error(line: str, said: str) -> None:
    assert usage_error(line).startswith(said)


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ("controller --lease-seconds nan", "--lease-seconds"),
        ("promote m 1 --to Production --wait nan", "--wait"),  # of which no time would ever be up
        ("drift run flights --false-alarm-rate nan", "--false-alarm-rate"),
    ],
)
def test_a_number_that_is_none_is_refused(line: str, option: str) -> None:
    assert mentions(usage_error(line), f"'{option}'", "'nan'")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("silence --list", "no silence holds: `onnxserve silence NAME --for 2h` makes one"),
        ("silence flights --list", "no silence holds: `onnxserve silence flights --for 2h` makes one"),
        ("monitor list", "there are no monitors: onnxserve monitor add NAME MONITOR makes one"),
        ("retrain --list", "there was no retraining"),
        ("logs flights", "flights has logged nothing: its server was not started yet, or has left no log"),
        ("endpoint delete nope", "nothing was deleted: there is no endpoint 'nope'; there are flights"),
    ],
)
def test_nothing_to_show_or_to_do_is_said_and_no_error(line: str, said: str) -> None:
    result = typed(line)

    assert (result.exit_code, result.output) == (0, f"{said}\n")


def test_ctrl_c_ends_a_command_as_sigint_does_so_that_a_loop_of_the_shell_ends() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        command = [sys.executable, "-m", "mlflow_deploy_plugin.cli", "promote", "m", "1", "--to", "Staging"]
        where = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | where) as process:
            connection, _ = silent.accept()
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
            connection.close()
    assert (process.returncode, said) == (-signal.SIGINT, "\nAborted!\n")


def test_an_output_that_is_full_is_said_in_one_line() -> None:
    command = [sys.executable, "-m", "mlflow_deploy_plugin.cli", "list"]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    said = "Error: the output, or a file, cannot be written: No space left on device\n"
    assert (ended.returncode, ended.stderr) == (1, said)
