"""Plans and builds the image of one model: the server's image if it is missing, then the layer of the model."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import yaml

from mlflow_deploy_plugin.errors import InvalidConfig, ModelError
from mlflow_deploy_plugin.images.context import BuildContext, model_context, server_context
from mlflow_deploy_plugin.images.engine import build, image_fields
from mlflow_deploy_plugin.logs import ProgressCallback
from mlflow_deploy_plugin.registry import ResolvedModel, resolve
from mlflow_deploy_plugin.registry.model_files import download
from mlflow_deploy_plugin.registry.model_uri import REGISTERED_META
from mlflow_deploy_plugin.runtime import PYTHON_FUNCTION, read_served_artifact
from mlflow_deploy_plugin.spec import Device
from mlflow_deploy_plugin.version import __version__

BASE_IMAGE = "python:3.11-slim-bookworm"  # the same as in docker/Dockerfile


@dataclass(frozen=True)
class ImagePlan:
    """The images to build, one upon the other.

    Attributes:
        server: the context from which `server_image` is built if it is missing; None for a given image.
        options: of that build.
        platform: the options that name the platform of both builds.
        resolved: the version that is baked in, or is followed now.
    """

    server_image: str
    server: BuildContext | None
    options: tuple[str, ...]
    platform: tuple[str, ...]
    model: BuildContext
    resolved: ResolvedModel


@dataclass(frozen=True)
class BuiltImage:
    """An image in the local engine. `size` is in bytes, all layers together; `labels` are as in `docker inspect`."""

    name: str
    id: str
    platform: str
    size: int
    labels: Mapping[str, str]


@contextmanager
def planned_image(
    model_uri: str,
    *,
    device: Device = "cpu",
    follow: bool = False,
    base_image: str | None = None,
    server_image: str | None = None,
    platform: str | None = None,
) -> Iterator[ImagePlan]:
    """Resolve the model, fetch it unless it is followed, and yield the plan; its files are removed at the end.

    Args:
        model_uri: as of `onnxserve serve -m`; without `follow`, a stage or alias is resolved once.
        device: for another than cpu, the image has CUDA's libraries.
        follow: leave the model out; the server follows `model_uri` when it runs.
        base_image: with Python 3.11 or newer, for the server's image; None: python:3.11-slim-bookworm.
        server_image: an existing server image, instead of one built from this installation.
        platform: as of `docker build`, e.g. linux/amd64; None: that of the engine.

    Raises InvalidConfig if the options contradict or `follow` gets a URI that cannot move, ModelError if the model has
    no ONNX form or its files are damaged, NotFound, and RegistryUnavailable.
    """
    if base_image and server_image:
        raise InvalidConfig("--base-image is what a server image is built on; with --server-image none is built")
    resolved = resolve(model_uri)
    if follow and not resolved.followed:
        raise InvalidConfig(
            f"{model_uri} cannot move: --follow takes a stage, an alias or a tag, as models:/X@champion"
        )
    server: BuildContext | None = None
    options: tuple[str, ...] = ()
    if server_image is None:
        server, base = server_context(), base_image or BASE_IMAGE
        # the name has a digest of the contents, so that equal inputs find the image and a new version gets a new one
        digest = sha256(" ".join(filter(None, (server.digest, base, platform))).encode()).hexdigest()
        target = "cpu" if device == "cpu" else "gpu"
        server_image = f"onnxserve:{target}-{__version__}-{digest[:12]}"
        options = ("--target", target, "--build-arg", f"BASE_IMAGE={base}", "--build-arg", f"VERSION={__version__}")
    environment: dict[str, str] = {"ONNXSERVE_DEVICE": device} if device != "cpu" else {}
    labels = _labels(resolved) | ({"org.opencontainers.image.version": ""} if follow else {})
    with tempfile.TemporaryDirectory(prefix="onnxserve-image-") as temporary:
        folder = None
        if follow:
            environment["ONNXSERVE_MODEL_URI"] = model_uri
        else:
            folder = download(resolved.source, Path(temporary))
            if read_served_artifact(folder).flavor == PYTHON_FUNCTION:
                raise ModelError(
                    f"{model_uri} has no ONNX form, and the image holds no library to run its code: wrap it (onnxserve "
                    "wrap), or let MLflow build an image of its environment (mlflow models build-docker)"
                )
            if resolved.version:  # `download` leaves out MLflow's note, from which the server reads name and version.
                note = {"model_name": resolved.name, "model_version": resolved.version}
                (folder / REGISTERED_META).write_text(yaml.safe_dump(note))
        context = model_context(server_image, folder, labels, environment)
        on_platform = ("--platform", platform) if platform else ()
        yield ImagePlan(server_image, server, options, on_platform, context, resolved)


def build_image(plan: ImagePlan, name: str, report: ProgressCallback, pull: bool = False) -> BuiltImage:
    """Build the model's image as `name`, and the server's image before it if it is missing.

    `report` gets the builder's lines. With `pull` the server's image is built anew on the newest base image. Raises
    BuildFailed without an engine or if a build failed, InvalidConfig if the given image has no server, and NotInstalled
    without a docker command.
    """
    if plan.server is not None and (pull or image_fields(plan.server_image) is None):
        pulling = ("--pull",) if pull else ()
        build(plan.server, plan.server_image, report, (*plan.options, *plan.platform, *pulling))
    fields = build(plan.model, name, report, plan.platform)
    if not any(one.startswith("ONNXSERVE_HOME=") for one in fields["Config"]["Env"] or ()):
        raise InvalidConfig(f"the image {name} cannot serve: {plan.server_image} is none of onnxserve's images")
    platform = f"{fields['Os']}/{fields['Architecture']}"
    return BuiltImage(name, fields["Id"], platform, fields["Size"], fields["Config"]["Labels"])


def _labels(resolved: ResolvedModel) -> dict[str, str]:
    """Return labels with OCI's names. They have no time, so that equal inputs give equal images."""
    return {
        "org.opencontainers.image.title": resolved.name,
        "org.opencontainers.image.version": resolved.version,
        "org.opencontainers.image.revision": resolved.aspects.get("git_commit", ""),
        "onnxserve.model": resolved.model_uri,
        "onnxserve.model_id": resolved.aspects.get("model_id", ""),
        "onnxserve.run_id": resolved.aspects.get("run_id", ""),
        "onnxserve.parity": resolved.aspects.get("parity", ""),
        "onnxserve.version": __version__,
    }
