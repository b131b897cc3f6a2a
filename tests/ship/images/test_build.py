"""Tests of an image's build plan: the model's version and labels, the server's image by
its content, and refused models.
"""

from pathlib import Path

import pytest

from mlflow_deploy_plugin.core.errors import CodeRefused, OnnxserveError
from mlflow_deploy_plugin.core.registry.model_uri import REGISTERED_META, default_endpoint_name
from mlflow_deploy_plugin.core.registry.resolution import resolve
from mlflow_deploy_plugin.core.signatures import BUNDLE
from mlflow_deploy_plugin.core.spec.parts import Device
from mlflow_deploy_plugin.ship.images.build import planned_image
from tests.core.registry.conftest import Store, built_store, store  # noqa: F401 - fixtures
from tests.support.models import tensor_model
from tests.support.pyfuncs import save_pyfuncs
from tests.support.refusals import refused


def test_image_of_a_version_has_labels_and_registered_name(store):  # noqa: F811
    with planned_image("models:/tiny@live") as plan:
        labels = {
            'LABEL onnxserve.model="models:/tiny@live"',
            f'LABEL onnxserve.model_id="{store.model_id}"',
            'LABEL onnxserve.parity="proven"',
            f'LABEL onnxserve.run_id="{store.run_id}"',
            'LABEL org.opencontainers.image.title="tiny"',
            'LABEL org.opencontainers.image.version="2"',
        }
        assert labels <= set(plan.model.dockerfile.splitlines())
        note = plan.model.files[f"rootfs/opt/ml/model/{REGISTERED_META}"]
        assert isinstance(note, Path)
        for resolved in (plan.resolved, resolve(str(note.parent))):
            assert resolved.name == "tiny"
            assert resolved.version == "2"
        assert default_endpoint_name(str(note.parent)) == "tiny"


def test_downloaded_folder_keeps_name_version_and_signature(tmp_path):
    folder = tensor_model(tmp_path / "m")
    (folder / BUNDLE).write_text("{}")
    (folder / REGISTERED_META).write_text("{model_name: tiny, model_version: '3'}")
    with planned_image(str(folder)) as plan:
        note = plan.model.files[f"rootfs/opt/ml/model/{REGISTERED_META}"]
        assert isinstance(note, Path)
        resolved = resolve(str(note.parent))
        assert f"rootfs/opt/ml/model/{BUNDLE}" in plan.model.files
    assert resolved.name == "tiny"
    assert resolved.version == "3"


def test_same_version_gives_same_image(store):  # noqa: F811
    digests = []
    for _ in range(2):
        with planned_image("models:/tiny/1") as plan:
            digests.append((plan.model.digest, plan.server_image))
    assert digests[0] == digests[1]


def test_followed_model_is_not_in_the_image(store):  # noqa: F811
    with planned_image(
        "models:/tiny@live", follow=True, device="cuda", server_image="registry/onnxserve:gpu"
    ) as plan:
        assert plan.server is None
        assert plan.model.files == {}
        lines = plan.model.dockerfile.splitlines()
    assert lines[:3] == [
        "FROM registry/onnxserve:gpu",
        'ENV ONNXSERVE_DEVICE="cuda"',
        'ENV ONNXSERVE_MODEL_URI="models:/tiny@live"',
    ]
    assert lines[-1] == 'CMD ["serve"]'
    assert not any(line.startswith("LABEL org.opencontainers.image.version") for line in lines)


def test_server_image_depends_on_base_and_platform(tmp_path):
    model = str(tensor_model(tmp_path / "m"))
    names = set()
    servers: list[tuple[str | None, Device, str]] = [
        (None, "cpu", "cpu"),
        ("python:3.12-slim", "cpu", "cpu"),
        (None, "cuda", "gpu"),
    ]
    for base, device, target in servers:
        with planned_image(model, base_image=base, device=device) as plan:
            names.add(plan.server_image)
            assert plan.options[:2] == ("--target", target)
    with planned_image(model, platform="linux/arm64") as plan:
        names.add(plan.server_image)
        assert plan.platform == ("--platform", "linux/arm64")
    assert len(names) == 4


def test_image_of_a_pyfunc_has_its_pyfunc_env(tmp_path):
    save_pyfuncs(tmp_path, ["days"])
    with planned_image(str(tmp_path / "days"), server_image="s:1", pyfunc_env="uv") as plan:
        lines = plan.model.dockerfile.splitlines()
    assert 'RUN ["onnxserve", "build-environment", "/opt/ml/model"]' in lines
    served = lines[len(lines) - lines[::-1].index("FROM s:1") - 1 :]
    assert "COPY --from=environment /opt/ml/environments /opt/ml/environments" in served
    assert 'ENV ONNXSERVE_PYFUNC_ENV="uv"' in served


def test_image_runs_no_forbidden_model_code(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_MODEL_CODE_EXECUTION", "false")
    save_pyfuncs(tmp_path, ["days"])
    with refused(CodeRefused, "days"), planned_image(str(tmp_path / "days"), pyfunc_env="uv"):
        pass


@pytest.mark.parametrize(
    ("uri", "options", "names"),
    [
        ("model", {"follow": True}, ["--follow", "models:/X@champion"]),
        ("model", {"base_image": "a", "server_image": "b"}, ["--base-image", "--server-image"]),
        ("days", {}, ["no ONNX form", "--env-manager uv", "onnxserve wrap"]),
        ("models:/x@y", {"follow": True, "pyfunc_env": "uv"}, ["--follow", "--env-manager uv"]),
    ],
)
def test_unsuitable_options_or_models_are_refused(uri, options, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tensor_model(Path("model"))
    save_pyfuncs(tmp_path, ["days"])
    with refused(OnnxserveError, *names), planned_image(uri, **options):
        pass
