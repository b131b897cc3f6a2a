"""Tests of `onnxserve export`, `render` and `build-docker`. See
tests/wrap/exporter and tests/ship for the results, and tests/docker for images.
"""

import os

import pytest
import yaml

from tests.support.commands import done, onnxserve
from tests.support.models import mixed_model, tensor_model
from tests.support.refusals import mentions


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return mixed_model(tmp_path_factory.mktemp("export") / "flight-delay")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tensor_model(tmp_path_factory.mktemp("images") / "images")


def test_exported_wheel_is_named(model, tmp_path):
    shown = done(f"export {model} --format wheel -o {tmp_path}")
    wheel = tmp_path / "flight_delay-0+m.1-py3-none-any.whl"
    assert shown.count("\n") == 1
    assert mentions(shown, "flight-delay version m-1", str(wheel), "564 rows")
    assert wheel.is_file()


@pytest.mark.parametrize(
    ("options", "status", "names"),
    [
        ("--format tflite", 1, ["tflite", "'carrier'"]),
        ("--rows none.csv", 1, ["file none.csv"]),
        ("--download-wheels", 2, ["--wheels", "--download-wheels", "bundle", "onnx"]),
        ("--name m", 2, ["--name", "wheel", "onnx"]),
    ],
)
def test_impossible_export_is_refused(model, tmp_path, options, status, names):
    done = onnxserve(f"export {model} -o {tmp_path}/m {options}")
    assert done.exit_code == status
    assert mentions(done.stderr, *names)
    assert not (tmp_path / "m").exists()


FLIGHTS = "-n flights models:/flight-delay/3"


def rendered(arguments):
    return done(f"render --for {arguments}")


def test_spec_file_renders_like_its_model(tmp_path):
    spec = "name: flights\nvariants: {flights: {model: 'models:/flight-delay/3'}}\n"
    (tmp_path / "flights.yaml").write_text(spec)
    options = "--namespace ml -C kubernetes.replicas=5"
    by_spec = rendered(f"kubernetes --spec {tmp_path}/flights.yaml {options}")
    assert by_spec == rendered(f"kubernetes {FLIGHTS} {options}")
    documents = {document["kind"]: document for document in yaml.safe_load_all(by_spec)}
    assert documents["Deployment"]["metadata"]["namespace"] == "ml"
    assert documents["Deployment"]["spec"]["replicas"] == 5


def test_rendered_files_are_printed_or_written(tmp_path):
    printed = rendered(f"compose {FLIGHTS}")
    assert rendered(f"compose {FLIGHTS} --folder {tmp_path}") == ""
    paths = ["compose.yaml", "flights/spec.yaml"]
    assert printed == "".join(f"# {path}\n{(tmp_path / path).read_text()}" for path in paths)


def test_rendered_spec_is_readable_for_containers(tmp_path):
    before = os.umask(0o077)
    try:
        rendered(f"compose {FLIGHTS} --folder {tmp_path}")
    finally:
        os.umask(before)
    spec = tmp_path / "flights" / "spec.yaml"
    assert [path.stat().st_mode & 0o005 for path in (spec.parent, spec)] == [0o005, 0o004]


@pytest.mark.parametrize(
    ("arguments", "is_missing"),
    [
        ("compose models:/flight-delay/3", True),
        ("compose models:/x/3 -C container.environment.MLFLOW_TRACKING_URI=http://m:5000", False),
        ("kubernetes models:/x/3 -C container.secrets.MLFLOW_TRACKING_URI=mlflow/uri", False),
        ("compose /srv/model", False),
        # `environment` of its values holds for all endpoints
        ("helm models:/x/3", False),
    ],
)
def test_missing_address_of_mlflow_is_noted(arguments, is_missing):
    done = onnxserve(f"render --for {arguments}")
    assert done.exit_code == 0
    assert mentions(done.stderr, "note", "MLflow") is is_missing


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ("", "AWS_ACCESS_KEY_ID"),
        ("-C container.environment.AWS_ACCESS_KEY_ID=a", ""),
        ("-C kubernetes.service_monitor=true -C server.api_keys=true", "service_monitor_key"),
    ],
)
def test_missing_credentials_are_noted(monkeypatch, config, name):
    for variable in [each for each in os.environ if each.startswith("AWS_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "secret-id")
    done = onnxserve(f"render --for kubernetes /srv/model {config}")
    assert done.exit_code == 0
    assert "secret-id" not in done.output + done.stderr
    assert mentions(done.stderr, "note", name) is bool(name)


def test_image_dry_run_prints_both_contexts(images):
    shown = done(f"build-docker {images} --dry-run")
    for part in (
        "# onnxserve:cpu-",
        "--target cpu",
        "FROM ${BASE_IMAGE} AS",
        "COPY rootfs /",
        'CMD ["serve"]',
    ):
        assert part in shown
    assert [line.split()[-1] for line in shown.splitlines()[-2:]] == [
        "rootfs/opt/ml/model/MLmodel",
        "rootfs/opt/ml/model/model.onnx",
    ]


@pytest.mark.parametrize(
    ("option", "variable"), [("--platform linux/amd64", ""), ("", "linux/amd64")]
)
def test_image_platform_comes_from_option_or_variable(images, option, variable, monkeypatch):
    monkeypatch.setenv("DOCKER_DEFAULT_PLATFORM", variable)
    done = onnxserve(f"build-docker {images} --dry-run {option}")
    assert done.stdout.splitlines()[0].endswith(" --platform linux/amd64")


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ("--follow", ["--follow", "a stage, an alias or a tag"]),
        ("--base-image a --server-image b", ["--server-image"]),
        ("--sbom none/x.json", ["--sbom", "no folder none"]),
        ("--server-image a", ["image x:1", "not built"]),
    ],
)
def test_impossible_image_is_refused(images, options, names, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")  # No engine listens there.
    done = onnxserve(f"build-docker {images} -n x:1 {options}")
    assert done.exit_code == 1
    assert mentions(done.stderr.splitlines()[-1], *names)
