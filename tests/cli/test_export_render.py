"""Tests of `onnxserve render` for new endpoints, stored endpoints and spec files."""

import os

import pytest
import yaml
from click.testing import CliRunner

from mlflow_deploy_plugin.cli.commands import main
from tests.support.refusals import mentions

SPEC = "name: flights\nvariants: {flights: {model: 'models:/flight-delay/3'}}\n"


def run(*arguments, format_name="kubernetes"):
    done = CliRunner().invoke(main, ["render", "--for", format_name, *arguments])
    return done.exit_code, done.stdout if done.exit_code == 0 else done.stderr


def test_a_model_or_a_spec_file_is_printed_as_documents(tmp_path):
    (tmp_path / "flights.yaml").write_text(SPEC)
    by_spec = run(
        "--spec", str(tmp_path / "flights.yaml"), "--namespace", "ml", "-C", "kubernetes.replicas=5"
    )
    by_model = run(
        "-n",
        "flights",
        "models:/flight-delay/3",
        "--namespace",
        "ml",
        "-C",
        "kubernetes.replicas=5",
    )
    assert by_spec == by_model
    deployment = next(
        document for document in yaml.safe_load_all(by_spec[1]) if document["kind"] == "Deployment"
    )
    assert deployment["metadata"]["namespace"] == "ml"
    assert deployment["spec"]["replicas"] == 5


def test_several_files_are_printed_below_their_paths_or_written_into_a_folder(tmp_path):
    model = ["-n", "flights", "models:/flight-delay/3"]
    status, printed = run(*model, format_name="compose")
    assert status == 0
    assert run(*model, "--folder", str(tmp_path), format_name="compose") == (0, "")
    paths = ["compose.yaml", "flights/spec.yaml"]
    assert printed == "".join(f"# {path}\n{(tmp_path / path).read_text()}" for path in paths)


def test_other_users_can_read_the_rendered_spec_whatever_the_umask(tmp_path):
    before = os.umask(0o077)
    try:
        run(
            "-n",
            "flights",
            "models:/flight-delay/3",
            "--folder",
            str(tmp_path),
            format_name="compose",
        )
    finally:
        os.umask(before)
    # The user of the container must be able to read the file.
    spec = tmp_path / "flights" / "spec.yaml"
    assert [path.stat().st_mode & 0o005 for path in (spec.parent, spec)] == [0o005, 0o004]


@pytest.mark.parametrize(
    ("arguments", "is_missing"),
    [
        (["compose", "models:/flight-delay/3"], True),
        (
            [
                "compose",
                "models:/x/3",
                "-C",
                "container.environment.MLFLOW_TRACKING_URI=http://mlflow:5000",
            ],
            False,
        ),
        (
            ["kubernetes", "models:/x/3", "-C", "container.secrets.MLFLOW_TRACKING_URI=mlflow/uri"],
            False,
        ),
        (["compose", "/srv/model"], False),
        # `environment` of its values holds for all endpoints
        (["helm", "models:/x/3"], False),
    ],
)
def test_files_that_do_not_say_where_mlflow_is_are_noted(arguments, is_missing):
    done = CliRunner().invoke(main, ["render", "--for", *arguments])
    assert done.exit_code == 0
    assert mentions(done.stderr, "note", "MLflow") is is_missing


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["-n", "flights"], ["no endpoint", "'flights'"]),
        (["--spec", "none.yaml"], ["spec none.yaml"]),
        (["models:/x/1", "--folder", "/proc"], ["/proc/x.yaml"]),
        (["models:/x/1", "-C", "kubernetes.replica=2"], ["'kubernetes.replicas'"]),
    ],
)
def test_a_mistake_is_one_line(arguments, names):
    status, message = run(*arguments)
    assert status == 1
    assert mentions(message, *names)
    assert message.count("\n") == 1
