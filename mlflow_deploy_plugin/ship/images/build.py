"""Plan and build the image of one model: first the server's image if it is missing,
then the layer of the model.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import yaml

from mlflow_deploy_plugin.core.errors import InvalidConfig, ModelError
from mlflow_deploy_plugin.core.logs import ProgressCallback
from mlflow_deploy_plugin.core.mlmodel import PYTHON_FUNCTION
from mlflow_deploy_plugin.core.model_code import require_model_code
from mlflow_deploy_plugin.core.registry.model_files import copy_bundle, download
from mlflow_deploy_plugin.core.registry.model_uri import REGISTERED_META
from mlflow_deploy_plugin.core.registry.resolution import ResolvedModel, resolve
from mlflow_deploy_plugin.core.spec.parts import Device, PyfuncEnv
from mlflow_deploy_plugin.core.version import __version__
from mlflow_deploy_plugin.serve.runtime.pyfunc_artifact import read_served_artifact
from mlflow_deploy_plugin.ship.images.context import (
    UV_VARIABLES,
    BuildContext,
    model_context,
    server_context,
)
from mlflow_deploy_plugin.ship.images.engine import build, image_fields

BASE_IMAGE = "python:3.11-slim-bookworm"  # docker/Dockerfile must have the same default.


@dataclass(frozen=True)
class ImagePlan:
    """The two images to build. The model's image is based on the server's image.

    Attributes:
        server: the context from which a missing `server_image` is built; None if the
            caller specifies a server image.
        options: the options of `docker build` for the server's image.
        platform: the platform options for both builds.
        resolved: the version in the image; with `follow`, the version to which the
            stage or alias points now.
        folder: the downloaded version; None with `follow`.
    """

    server_image: str
    server: BuildContext | None
    options: tuple[str, ...]
    platform: tuple[str, ...]
    model: BuildContext
    resolved: ResolvedModel
    folder: Path | None


@dataclass(frozen=True)
class BuiltImage:
    """An image in the local engine.

    Attributes:
        size: the size of all layers in bytes.
        labels: the labels as in `docker inspect`.
    """

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
    pyfunc_env: PyfuncEnv = "local",
) -> Iterator[ImagePlan]:
    """Resolve the model, download it unless `follow` is set, and yield the plan. The
    download is removed at the end.

    The arguments are the options of `onnxserve build-docker`. For any device but cpu,
    the image contains CUDA.

    Raises InvalidConfig if the options conflict or `follow` is used with a URI that
    cannot move, ModelError if the model has no ONNX form or its files are damaged,
    NotFound, and RegistryUnavailable.
    """
    if base_image and server_image:
        raise InvalidConfig(
            "--base-image has no effect with --server-image, because no server image is built"
        )
    if follow and pyfunc_env == "uv":
        raise InvalidConfig(
            "--env-manager uv puts the environment of one version into the image: omit --follow"
        )
    resolved = resolve(model_uri)
    if follow and not resolved.followed:
        raise InvalidConfig(
            f"{model_uri} cannot move: --follow requires a stage, an alias or a tag, such as "
            "models:/X@champion"
        )
    server: BuildContext | None = None
    options: tuple[str, ...] = ()
    base_image = base_image or BASE_IMAGE
    if server_image is None:
        server = server_context()
        target = "cpu" if device == "cpu" else "gpu"
        # Reuse an existing image for equal contents.
        contents = " ".join(filter(None, (server.digest, base_image, platform)))
        digest = sha256(contents.encode()).hexdigest()
        server_image = f"onnxserve:{target}-{__version__}-{digest[:12]}"
        options = ("--target", target, "--build-arg", f"BASE_IMAGE={base_image}")
        options += ("--build-arg", f"VERSION={__version__}")
    environment: dict[str, str] = {"ONNXSERVE_DEVICE": device} if device != "cpu" else {}
    with tempfile.TemporaryDirectory(prefix="onnxserve-image-") as temporary:
        folder = None
        # The labels have OCI names, but no time, so that equal inputs produce equal
        # images.
        labels = {
            "org.opencontainers.image.title": resolved.name,
            "org.opencontainers.image.version": resolved.version,
            "org.opencontainers.image.revision": resolved.aspects.get("git_commit", ""),
            "onnxserve.model": resolved.model_uri,
            "onnxserve.model_id": resolved.aspects.get("model_id", ""),
            "onnxserve.run_id": resolved.aspects.get("run_id", ""),
            "onnxserve.parity": resolved.aspects.get("parity", ""),
            "onnxserve.version": __version__,
        }
        if follow:
            environment["ONNXSERVE_MODEL_URI"] = model_uri
            labels["org.opencontainers.image.version"] = ""
        else:
            folder = download(resolved.source, Path(temporary))
            copy_bundle(resolved.source, folder)
            if read_served_artifact(folder).flavor == PYTHON_FUNCTION:
                if pyfunc_env == "local":
                    raise ModelError(
                        f"{resolved.model_uri} has no ONNX form, and the image has no library to "
                        "run its code: specify --env-manager uv, or wrap it (onnxserve wrap)"
                    )
                require_model_code(resolved.model_uri)  # uv runs code of source packages.
                environment["ONNXSERVE_PYFUNC_ENV"] = pyfunc_env
            if resolved.version:  # `download` omits MLflow's file REGISTERED_META.
                (folder / REGISTERED_META).write_text(
                    yaml.safe_dump({"model_name": resolved.name, "model_version": resolved.version})
                )
        yield ImagePlan(
            server_image,
            server,
            options,
            ("--platform", platform) if platform else (),
            model_context(server_image, folder, labels, environment, base_image),
            resolved,
            folder,
        )


def build_image(plan: ImagePlan, name: str, report: ProgressCallback, pull: bool) -> BuiltImage:
    """Build the model's image as `name`. The server's image is built first if it is
    missing.

    Args:
        plan: the two images.
        name: the name of the model's image.
        report: receives the output lines of the builder.
        pull: True if the server's image is rebuilt on the newest base image.

    Raises BuildFailed if there is no engine or a build failed, InvalidConfig if the
    server image has no server, and NotInstalled if the docker command is missing.
    """
    if plan.server is not None and (pull or image_fields(plan.server_image) is None):
        pulling = ("--pull",) if pull else ()
        build(plan.server, plan.server_image, report, (*plan.options, *plan.platform, *pulling))
    arguments = [f"--build-arg={name}" for name in UV_VARIABLES if name in os.environ]
    fields = build(plan.model, name, report, (*plan.platform, *arguments))
    variables = fields["Config"]["Env"] or ()
    if not any(variable.startswith("ONNXSERVE_HOME=") for variable in variables):
        raise InvalidConfig(
            f"the image {name} cannot serve: {plan.server_image} is not an onnxserve image"
        )
    platform = f"{fields['Os']}/{fields['Architecture']}"
    labels = fields["Config"]["Labels"]
    return BuiltImage(name, fields["Id"], platform, fields["Size"], labels)
