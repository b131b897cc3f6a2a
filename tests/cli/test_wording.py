"""The wording of the most frequent messages of the command line: each row is a command
and its last line.
"""

import pytest
from click.testing import CliRunner

from mlflow_deploy_plugin.cli.commands import main
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.store.database import open_store


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Make a home with the endpoint `flights`, which no server runs for."""
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    store = open_store(f"sqlite:///{tmp_path}/onnxserve.db")
    store.add_endpoint("onnxserve", new_endpoint("flights", "m", {"server.port": 8080}))
    store.close()


@pytest.mark.parametrize(
    ("line", "status", "message"),
    [
        ("lsit", 2, "Error: there is no command 'lsit'; did you mean 'list'?"),
        (
            "deploy",
            2,
            "Error: there is no command 'deploy'; use MLflow's command: "
            "`mlflow deployments create -t onnxserve --name NAME`",
        ),
        ("serve", 2, "Error: specify either MODEL or --spec FILE"),
        ("predict", 2, "Error: specify either MODEL or -n DEPLOYMENT"),
        ("promote models:/m/1 --to Production --force", 2, "Error: --force requires --why REASON"),
        (
            "promote models:/m/1 --to Production --wait nan",
            2,
            "Error: Invalid value for '--wait': 'nan' is not a number",
        ),
        (
            "rollout start flights --to 2 --every 5",
            2,
            "Error: --every '5' cannot be read; a duration like 30s, 5m, 1h, 90d or 1w is expected",
        ),
        (
            "rollout start flights --to 2 --steps 50,10",
            2,
            "Error: --steps 50,10: steps must ascend and be between 1 and 100",
        ),
        ("start fligths", 1, "Error: there is no deployment 'fligths'; did you mean 'flights'?"),
        ("endpoint get nope", 1, "Error: there is no endpoint 'nope'; there are flights"),
        (
            "monitor remove flights daily",
            1,
            "Error: endpoint 'flights' has no monitor 'daily'; onnxserve monitor add makes one",
        ),
        (
            "feedback flights -f labels",
            1,
            "Error: the file labels cannot be read: No such file or directory",
        ),
        (
            "alert unsilence 7",
            1,
            "Error: there is no silence 7; `onnxserve alert silences` lists the active ones",
        ),
        ("keys list", 0, "there are no keys: run `onnxserve keys create NAME`"),
        ("monitor list", 0, "there are no monitors: run `onnxserve monitor add NAME MONITOR`"),
        ("alert silences", 0, "no silence is active: run `onnxserve alert silence NAME --for 2h`"),
        ("endpoint delete nope", 1, "Error: there is no endpoint 'nope'; there are flights"),
    ],
)
def test_the_last_line_of_a_command(line, status, message):
    result = CliRunner().invoke(main, line.split())

    assert result.exit_code == status
    assert result.output.splitlines()[-1] == message
