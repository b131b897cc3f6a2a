"""`onnxserve build-docker` on a real engine: equal layers, a followed model, a push,
and failures.
"""

import json
import os
import re
import shutil
import subprocess
import urllib.request

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from mlflow_deploy_plugin.cli.commands import main
from mlflow_deploy_plugin.ship.images.build import planned_image
from mlflow_deploy_plugin.ship.images.engine import build, image_fields
from tests.docker.conftest import HARDENED, ROOT, send
from tests.docker.test_image import ROWS, log_version
from tests.support.refusals import mentions
from tests.support.waiting import wait_until
from tests.support.workflows import Workflow

pytestmark = [
    pytest.mark.docker,
    pytest.mark.filterwarnings("ignore:.*transition_model_version_stage.*:FutureWarning"),
]


@pytest.fixture
def tag(image, docker):
    """The name of an image that is removed with the test."""
    yield (name := f"{image}-built")
    docker("rmi", "-f", name, check=False)


def invoke(*arguments):
    return CliRunner().invoke(main, ["build-docker", *map(str, arguments)])


def test_build_reports_the_contents_of_the_image(image, tag, model_folder, tmp_path):
    sbom = tmp_path / "sbom.json"
    done = invoke(model_folder, "-n", tag, "--server-image", image, "--sbom", sbom)
    assert done.exit_code == 0, done.output
    fields = image_fields(tag)
    assert fields is not None
    assert done.stdout.startswith(f"{tag}: model, ")
    assert mentions(done.stdout, f"linux/{fields['Architecture']}", f"{fields['Id']} on {image}")
    assert fields["Config"]["Labels"]["onnxserve.model"] == str(model_folder)
    assert fields["Config"]["User"] == "10001"
    assert json.loads(sbom.read_bytes())["bomFormat"] == "CycloneDX"


def test_equal_inputs_give_an_equal_layer_by_either_builder(
    image, tag, model_folder, tmp_path, docker, monkeypatch
):
    layers = set()
    for turn, builder in enumerate("0011"):
        copied = shutil.copytree(model_folder, tmp_path / str(turn) / "model")
        os.utime(copied / "MLmodel", (turn, turn))
        if builder == "1" and docker("buildx", "version", check=False).returncode:
            break  # this machine has only the legacy builder
        monkeypatch.setenv("DOCKER_BUILDKIT", builder)
        with planned_image(str(copied), server_image=image) as plan:
            build(plan.model, tag, print, ("--no-cache",))
        fields = image_fields(tag)
        assert fields is not None
        layers.add(fields["RootFS"]["Layers"][-1])
    assert len(layers) == 1


@pytest.mark.long
def test_a_followed_model_is_the_registrys(image, tag, start, tracking_uri, times):
    first = log_version(times, 2)
    second = log_version(times, 3)
    registry = MlflowClient(tracking_uri)
    registry.transition_model_version_stage(
        "times", first, "Production", archive_existing_versions=True
    )
    done = invoke("models:/times/Production", "-n", tag, "--follow", "--server-image", image)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"{tag}: follows models:/times/Production, ")
    home = ["--tmpfs", "/var/lib/onnxserve", "-e", f"MLFLOW_TRACKING_URI={tracking_uri}"]
    with start(tag, *HARDENED, *home, "-e", "ONNXSERVE_INSECURE=true", command=[]) as container:
        container.wait_healthy()
        assert container.ask(ROWS).headers["X-Model-Version"] == first
        registry.transition_model_version_stage(
            "times", second, "Production", archive_existing_versions=True
        )
        wait_until(
            lambda: container.ask(ROWS).headers["X-Model-Version"] == second,
            what="the promotion is served",
        )


def test_a_followed_model_needs_a_word_about_its_callers(image, docker):
    ended = docker("run", "--rm", "-e", "ONNXSERVE_MODEL_URI=models:/x@y", image, check=False)
    assert ended.returncode == 1
    assert mentions(ended.stderr, "0.0.0.0", "need a key")


def test_a_followed_model_needs_the_address_of_mlflow(image, docker):
    variables = ["-e", "ONNXSERVE_MODEL_URI=models:/x@y", "-e", "ONNXSERVE_INSECURE=true"]
    ended = docker("run", "--rm", *variables, image, check=False)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith(
        "Error: MLFLOW_TRACKING_URI is not set: set it to the address of the MLflow "
    )


@pytest.fixture
def registry(tmp_path, free_port):
    """Run a registry of images on this machine, from Debian's package."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("no registry is installed (apt-get install docker-registry)")
    config = {
        "version": "0.1",
        "storage": {"filesystem": {"rootdirectory": str(tmp_path / "registry")}},
    }
    (tmp_path / "config.yml").write_text(
        json.dumps(config | {"http": {"addr": f"127.0.0.1:{free_port}"}})
    )
    with (tmp_path / "registry.log").open("w") as log:
        process = subprocess.Popen(
            [program, "serve", tmp_path / "config.yml"], stdout=log, stderr=log
        )
    try:
        wait_until(
            lambda: _answers(f"http://127.0.0.1:{free_port}/v2/"), what="the registry answers"
        )
        yield f"127.0.0.1:{free_port}"
    finally:
        process.terminate()
        process.wait(20)


def _answers(url):
    try:
        return send(url).status == 200
    except OSError:
        return False


def test_pushed_image_is_in_the_registry(image, registry, model_folder, docker):
    name = f"{registry}/ml/times:3"
    try:
        done = invoke(model_folder, "-n", name, "--server-image", image, "--push")
    finally:
        docker("rmi", "-f", name, check=False)
    assert done.exit_code == 0, done.output
    digest = done.stdout.splitlines()[-1].removeprefix(f"{name}: pushed, ")
    request = urllib.request.Request(
        f"http://{registry}/v2/ml/times/manifests/3",
        headers={"Accept": "application/vnd.docker.distribution.manifest.v2+json"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert answer.headers["Docker-Content-Digest"] == digest


def test_the_workflow_of_a_model_repository_pushes_the_image_of_a_version(
    image, registry, tracking_uri, times, docker, tmp_path
):
    version = log_version(times, 2)
    name = f"{registry}/ml/times"
    inputs = {
        "model": "times",
        "mlflow-tracking-uri": tracking_uri,
        "image": name,
        "server-image": image,
    }
    (tmp_path / "requirements.txt").write_text("mlflow-onnxserve[cpu]\n")
    workflow = Workflow(ROOT / ".github/workflows/model.yaml", tmp_path, inputs)
    workflow.assume("version", version=version)
    try:
        installed, pushed = workflow.run("image")
    finally:
        docker("rmi", "-f", f"{name}:{version}", check=False)
    assert (installed.status, pushed.status) == (0, 0), pushed.output
    assert send(f"http://{registry}/v2/ml/times/tags/list").body == {
        "name": "ml/times",
        "tags": [version],
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--base-image", "127.0.0.1:9/python:3.11"],
            "the image onnxserve:cpu-.* was not built: .*127.0.0.1:9",
        ),
        (["--server-image", "127.0.0.1:9/onnxserve:cpu"], "was not built: .*127.0.0.1:9"),
        (
            ["--server-image", "python:3.11-slim-bookworm"],
            (
                "the image 127.0.0.1:9/x:1 cannot serve: python:3.11-slim-bookworm is not an "
                "onnxserve image"
            ),
        ),
        (["--push"], "the image 127.0.0.1:9/x:1 was not pushed: .*127.0.0.1:9"),
    ],
)
def test_failed_build_ends_with_a_one_line_error(
    arguments, message, image, model_folder, docker, tmp_path
):
    options = arguments if "image" in arguments[0] else [*arguments, "--server-image", image]
    name = "127.0.0.1:9/x:1"
    done = invoke(
        model_folder,
        "-n",
        name,
        *(str(tmp_path / argument) if argument == "x" else argument for argument in options),
    )
    docker("rmi", "-f", name, check=False)
    assert done.exit_code == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    assert re.search(message, last), last
