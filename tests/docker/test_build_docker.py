"""`onnxserve build-docker` on a real engine: equal layers, a followed model, a push,
and failures.
"""

import json
import re

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from mlflow_deploy_plugin.cli.commands import main
from mlflow_deploy_plugin.ship.images.engine import image_fields
from tests.docker.conftest import HARDENED
from tests.docker.test_image import ROWS, log_version
from tests.support.refusals import mentions
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.docker,
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore:.*transition_model_version_stage.*:FutureWarning"),
]


@pytest.fixture
def tag(image, docker):
    """The name of an image that is removed with the test."""
    yield (name := f"{image}-built")
    docker("rmi", "-f", name, check=False)


def invoke(*arguments):
    return CliRunner().invoke(main, ["build-docker", *map(str, arguments)])


def test_build_reports_the_image(image, tag, model_folder, tmp_path):
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


def test_followed_model_is_served(image, tag, start, tracking_uri, times):
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


@pytest.mark.parametrize(
    ("variables", "names"),
    [([], ["0.0.0.0", "key"]), (["-e", "ONNXSERVE_INSECURE=true"], ["MLFLOW_TRACKING_URI"])],
)
def test_incomplete_settings_for_followed_model_are_refused(image, docker, variables, names):
    followed = ["-e", "ONNXSERVE_MODEL_URI=models:/x@y"]
    ended = docker("run", "--rm", *followed, *variables, image, check=False)
    assert ended.returncode == 1
    assert mentions(ended.stderr, *names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--server-image", "127.0.0.1:9/onnxserve:cpu"], "was not built: .*127.0.0.1:9"),
        (["--server-image", "python:3.11-slim-bookworm"], "is not an onnxserve image"),
        (["--push"], "was not pushed: .*127.0.0.1:9"),
    ],
)
def test_failed_build_is_one_line(arguments, message, image, model_folder, docker):
    options = arguments if "image" in arguments[0] else [*arguments, "--server-image", image]
    name = "127.0.0.1:9/x:1"
    done = invoke(model_folder, "-n", name, *options)
    docker("rmi", "-f", name, check=False)
    assert done.exit_code == 1
    last = done.stderr.splitlines()[-1]
    assert re.search(f"^Error: .*{message}", last), last
