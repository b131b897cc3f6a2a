"""Build contexts: the files from which Docker builds an image. Equal files produce
equal bytes and equal layers.

The server's context contains docker/Dockerfile, the constraints and the package, from a
checkout or an installed wheel. A model's context contains a short Dockerfile based on
the server's image, and the model's files.
"""

import hashlib
import io
import json
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath
from typing import IO

from mlflow_deploy_plugin.core.errors import NotInstalled
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.serve.agent.pyfunc_environment import IMAGE_ENVIRONMENTS

MODEL_PATH = "/opt/ml/model"
"""The model folder in images of SageMaker and MLflow. `serve` serves the model of this
folder by default.
"""
DOCKERFILE = "docker/Dockerfile"
PROJECT_FILES = (
    DOCKERFILE,
    "docker/constraints-gpu.txt",
    "docker/requirements.py",
    "docker/slim.py",
    "constraints.txt",
    "onnxserve.py",
    "pyproject.toml",
    "setup.cfg",
)
"""The files that the Dockerfile copies in addition to the package. A wheel has them in
share/onnxserve (setup.cfg).
"""
_PACKAGE = Path(__file__).parents[2]
_ROOT = "rootfs"
"""A context folder that is copied to /, so that each of Docker's builders keeps folder
times and makes equal layers.
"""
_MTIME = 1_577_836_800  # All files have the time 2020-01-01, so that layers are reproducible.


UV_VARIABLES = ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_SYSTEM_CERTS")
"""The variables of the caller that uv receives in a build."""
_BUILD_ENVIRONMENT = """\
FROM {base_image} AS uv
RUN pip install --no-cache-dir --target /uv uv

FROM {server_image} AS environment
USER 0
{arguments}
ENV UV_NO_CACHE=1 UV_PYTHON_INSTALL_DIR={environments}/python
COPY --from=uv /uv/bin /usr/local/bin
COPY {root} /
RUN ["onnxserve", "build-environment", "{model}"]
"""


@dataclass(frozen=True)
class BuildContext:
    """A Dockerfile and its files, keyed by path in the context."""

    dockerfile: str
    files: Mapping[str, Path | bytes]

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 over names and contents, in hexadecimal digits."""
        combined = hashlib.sha256(self.dockerfile.encode())
        for name, digest, _ in self._measured:
            combined.update(f"\0{name}\0{digest}".encode())
        return combined.hexdigest()

    @cached_property
    def _measured(self) -> list[tuple[str, str, int]]:
        measured = []
        for name, content in sorted(self.files.items()):
            with _opened(content) as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
                measured.append((name, digest, stream.tell()))
        return measured

    def write(self, stream: IO[bytes]) -> None:
        """Write the context as a tar archive: sorted, owned by root, with fixed times
        and modes.
        """
        files = {**self.files, "Dockerfile": self.dockerfile.encode()}
        folders = set[str]()
        for name in self.files:
            folders.update(map(str, PurePosixPath(name).parents))
        folders.discard(".")
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for name in sorted({*folders, *files}):
                entry = tarfile.TarInfo(name)
                entry.mtime = _MTIME
                entry.mode = 0o644
                if name in folders:
                    entry.type = tarfile.DIRTYPE
                    entry.mode = 0o755
                    archive.addfile(entry)
                    continue
                with _opened(files[name]) as content:
                    entry.size = content.seek(0, io.SEEK_END)
                    content.seek(0)
                    archive.addfile(entry, content)

    def listing(self) -> Iterator[str]:
        """Yield the Dockerfile's lines and a line per file of the context. The files of
        the package share one line.
        """
        yield from self.dockerfile.splitlines()
        yield ""
        groups = defaultdict(list)
        for file in self._measured:
            name = file[0]
            if name.partition("/")[0] == _PACKAGE.name:
                name = f"{_PACKAGE.name}/"
            groups[name].append(file)
        for name, members in groups.items():
            digest = members[0][1]
            if name.endswith("/"):
                digest = hashlib.sha256(
                    "".join(f"{path}\0{sha}\0" for path, sha, _ in members).encode()
                ).hexdigest()
            size = sum(size for *_, size in members)
            line = f"# {digest[:16]}  {size:>12,}  {name}"
            if len(members) > 1:
                line += f"  ({len(members)} files)"
            yield line


def server_context() -> BuildContext:
    """Return the context of every server image: this package as installed, with its
    Dockerfile.

    Raises NotInstalled if the installation lacks a file of the wheel.
    """
    files: dict[str, Path | bytes] = {name: _project_file(name) for name in PROJECT_FILES}
    for path in _PACKAGE.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            files[f"{_PACKAGE.name}/{path.relative_to(_PACKAGE).as_posix()}"] = path
    return BuildContext(Path(_project_file(DOCKERFILE)).read_text(), files)


def model_context(
    server_image: str,
    folder: Path | None,
    labels: Mapping[str, str],
    environment: Mapping[str, str],
    base_image: str = "",
) -> BuildContext:
    """Return the context of a model's image. Without a folder, the image follows the
    model set in `environment`. If that sets uv as a pyfunc's, the image has the
    pyfunc's environment; pip installs uv in the `base_image`.
    """
    lines = [f"FROM {server_image}"]
    if "ONNXSERVE_PYFUNC_ENV" in environment:
        build = _BUILD_ENVIRONMENT.format(
            base_image=base_image,
            server_image=server_image,
            arguments="\n".join(f"ARG {name}" for name in UV_VARIABLES),
            environments=IMAGE_ENVIRONMENTS,
            root=_ROOT,
            model=MODEL_PATH,
        )
        copy = f"COPY --from=environment {IMAGE_ENVIRONMENTS} {IMAGE_ENVIRONMENTS}"
        lines = [build, *lines, copy]
    files: dict[str, Path | bytes] = {}
    if folder is not None:
        inside = f"{_ROOT}{MODEL_PATH}"
        files = {
            f"{inside}/{path.relative_to(folder).as_posix()}": path
            for path in folder.rglob("*")
            if path.is_file()
        }
        lines.append(f"COPY {_ROOT} /")
    lines += [f"ENV {name}={_quoted(value)}" for name, value in sorted(environment.items())]
    lines += [f"LABEL {name}={_quoted(value)}" for name, value in sorted(labels.items()) if value]
    lines += ['CMD ["serve"]']
    return BuildContext("\n".join(lines) + "\n", files)


def _quoted(value: str) -> str:
    """Return a value quoted for a Dockerfile. `$` is escaped, because it would begin a
    build variable.
    """
    return json.dumps(one_line(value), ensure_ascii=False).replace("$", r"\$")


def _opened(content: Path | bytes) -> io.BufferedReader | io.BytesIO:
    if isinstance(content, Path):
        return content.open("rb")
    return io.BytesIO(content)


def _project_file(name: str) -> Path:
    """Return the path of a project file: next to the package in a checkout, otherwise
    in the wheel's data folder.
    """
    if (_PACKAGE.parent / DOCKERFILE).is_file():
        return _PACKAGE.parent / name
    try:
        files = distribution("mlflow-onnxserve").files or []
    except PackageNotFoundError:
        files = []
    for file in files:
        if file.as_posix().endswith(f"share/onnxserve/{name}"):
            return Path(str(file.locate()))
    raise NotInstalled(
        f"this installation of onnxserve lacks {name}, which its image builds need: install its "
        "wheel with pip, or specify an existing server image (--server-image)"
    )
