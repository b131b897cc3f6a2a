"""Tests of the output and exit statuses of `onnxserve optimize`. See
tests/wrap/optimization for the forms.
"""

import json
from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result
from mlflow import MlflowClient

from mlflow_deploy_plugin.cli.commands import main
from mlflow_deploy_plugin.wrap.optimization import measure
from tests.support.networks import write_labelled, write_network
from tests.support.refusals import mentions
from tests.support.tracking import tracking_at

Command = Callable[..., Result]


@pytest.fixture(scope="module")
def net(tmp_path_factory, new_database):
    """The command, on a registry with version 1 of `net`; `test.parquet` has labelled
    rows.
    """
    folder = tmp_path_factory.mktemp("optimize")
    with pytest.MonkeyPatch.context() as patch, tracking_at(new_database(folder)):
        patch.setenv("ONNXSERVE_HOME", str(folder / "home"))
        patch.setattr(measure, "ROUND_SECONDS", 0.0005)
        patch.chdir(folder)
        client = MlflowClient()
        client.create_registered_model("net")
        client.create_model_version("net", write_network(folder / "models" / "net").as_uri())
        write_labelled(folder / "test.parquet")
        yield lambda *arguments: CliRunner().invoke(main, ["optimize", *arguments])


@pytest.mark.long
def test_optimized_form_is_compared_to_its_base_and_registered(net):
    done = net("models:/net/1", "--fp16", "--data", "test.parquet", "--target", "label")
    assert done.exit_code == 0, done.output
    head, base, form, registered = done.stdout.splitlines()
    assert head.split("  ")[0] == "form"
    assert base.startswith("base")
    assert "(1.00)" in base
    assert "% equal labels" in form
    assert mentions(form, "accuracy 1.0000", "base 1.0000", "200 rows")
    assert registered.startswith("registered net version ")
    assert registered.endswith(": fp16, made from models:/net/1")
    assert "creating fp16" in done.stderr


def test_a_loss_beyond_the_limit_is_exit_status_1_and_one_line_after_the_table(net):
    done = net("models:/net/1", "--int8", "dynamic", "--max-loss", "0")
    assert done.exit_code == 1
    assert done.stdout.splitlines()[2].startswith("int8 dynamic")
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error")]
    assert mentions(line, "limit of 0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("models:/net/9", "--fp16"), "model net has no version 9; versions: 1")],
)
def test_a_mistake_is_one_line_and_exit_status_1(net, arguments, message):
    done = net(*arguments)
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith(f"Error: {message[:40]}")


@pytest.mark.long
def test_a_form_is_served_like_any_other_version(net, serve, free_port):
    done = net("models:/net/1", "--int8", "static", "--max-loss", "0.1", "-o", "json")
    assert done.exit_code == 0, done.output
    version = json.loads(done.stdout)["version"]
    served = serve(f"models:/net/{version}", "--port", str(free_port)).wait_ready()
    answer = served.predict(*[0.5] * 16)
    assert answer.status_code == 200, answer.text
    assert answer.headers["X-Model-Version"] == version
    assert answer.json()["predictions"][0] in (0, 1, 2)
