"""Tests of `onnxserve build-docker` without Docker: output and errors. See tests/docker
for builds.
"""

import pytest
from click.testing import CliRunner

from mlflow_deploy_plugin.cli.commands import main
from tests.support.models import tensor_model
from tests.support.refusals import mentions


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tensor_model(tmp_path_factory.mktemp("images") / "images")


def test_a_dry_run_prints_both_contexts(model):
    done = CliRunner().invoke(main, ["build-docker", str(model), "--dry-run"])
    assert done.exit_code == 0, done.output
    for part in (
        "# onnxserve:cpu-",
        "--target cpu",
        "FROM ${BASE_IMAGE} AS",
        "COPY rootfs /",
        'CMD ["serve"]',
    ):
        assert part in done.stdout
    assert [line.split()[-1] for line in done.stdout.splitlines()[-2:]] == [
        "rootfs/opt/ml/model/MLmodel",
        "rootfs/opt/ml/model/model.onnx",
    ]


@pytest.mark.parametrize("is_option", [True, False])
def test_an_image_for_another_processor_is_asked_for_by_an_option_or_dockers_variable(
    model, is_option, monkeypatch
):
    if not is_option:
        monkeypatch.setenv("DOCKER_DEFAULT_PLATFORM", "linux/amd64")
    option = ["--platform", "linux/amd64"] if is_option else []
    done = CliRunner().invoke(main, ["build-docker", str(model), "--dry-run", *option])
    assert done.stdout.splitlines()[0].endswith(" --platform linux/amd64")


@pytest.mark.parametrize(
    ("arguments", "status", "names"),
    [
        ([], 2, ["'-n' / '--name'"]),
        (["-n", "x:1", "--follow"], 1, ["--follow", "a stage, an alias or a tag"]),
        (["-n", "x:1", "--follow", "--test"], 2, ["--test", "--follow"]),
        (["-n", "x:1", "--base-image", "a", "--server-image", "b"], 1, ["--server-image"]),
        (["-n", "x:1", "--sbom", "none/x.json"], 1, ["--sbom", "no folder none"]),
        (["-n", "x:1", "--server-image", "a"], 1, ["image x:1", "not built"]),
    ],
)
def test_a_mistake_is_one_line(model, arguments, status, names, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")  # No engine listens there.
    done = CliRunner().invoke(main, ["build-docker", str(model), *arguments])
    assert done.exit_code == status
    assert mentions(done.stderr.splitlines()[-1], *names)
