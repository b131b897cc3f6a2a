"""Compare the size and the start of an image with one model: `onnxserve build-docker`
and `mlflow models build-docker`.

    python benchmarks/images.py

A scikit-learn model of a hundred trees is saved by MLflow's own flavor and by ours.
MLflow's image is built from the Dockerfile that `mlflow models generate-dockerfile`
writes, with another base: both images use the base that `--base-image` names. No layer
is taken from Docker's cache (`--no-cache`), so the seconds are the time of a first
build with this machine's package index. The script needs Docker and a package index.
The images are removed at the end, but some GB remain in Docker's build cache (`docker
builder prune`).
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlflow.sklearn
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier

from mlflow_deploy_plugin import save_model
from mlflow_deploy_plugin.ship.images.build import BASE_IMAGE, planned_image
from mlflow_deploy_plugin.ship.images.engine import build, image_fields

ROWS = b'{"dataframe_split": {"columns": ["a", "b", "c", "d"], "data": [[5.1, 3.5, 1.4, 0.2]]}}'


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"docker {' '.join(arguments)}: {done.stderr[-2000:]}")
    return done.stdout.strip()


def save_both(folder: Path) -> tuple[Path, Path]:
    """Save one model of 100 trees by MLflow's flavor and by ours."""
    rows, labels = load_iris(return_X_y=True, as_frame=True)
    rows.columns = list("abcd")
    theirs = folder / "mlflow"
    ours = folder / "onnxserve"
    trees = RandomForestClassifier(100, random_state=0).fit(rows, labels)
    mlflow.sklearn.save_model(
        trees,
        theirs,
        input_example=rows.head(),
        serialization_format="cloudpickle",
    )
    save_model(trees, ours, input_example=rows.head())
    return theirs, ours


def build_mlflows(model: Path, folder: Path, base: str, tag: str) -> None:
    mlflow_command = Path(sys.executable).with_name("mlflow")
    subprocess.run(
        [mlflow_command, "models", "generate-dockerfile", "-m", model, "-d", folder],
        check=True,
        capture_output=True,
    )
    dockerfile = folder / "Dockerfile"
    dockerfile.write_text(re.sub(r"^FROM .*", f"FROM {base}", dockerfile.read_text(), flags=re.M))
    docker("build", "--no-cache", "-q", "-t", tag, str(folder))


def build_ours(model: Path, base: str, tag: str) -> None:
    with planned_image(str(model), base_image=base) as plan:
        assert plan.server is not None
        build(plan.server, plan.server_image, lambda line: None, (*plan.options, "--no-cache"))
        build(plan.model, tag, lambda line: None)


def image_size(tag: str) -> float:
    """Return the megabytes of a local image with all its layers."""
    fields = image_fields(tag)
    if fields:
        return fields["Size"] / 1e6
    return sys.exit(f"{tag} is missing: docker pull {tag}")


@contextmanager
def container(tag: str) -> Iterator[str]:
    name = docker("run", "-d", "-p", "127.0.0.1::8080", tag)
    try:
        yield f"http://{docker('port', name, '8080/tcp').splitlines()[0]}"
    finally:
        docker("rm", "-f", "-v", name)


def seconds_to_answer(tag: str) -> float:
    """Return the seconds from `docker run` to the first prediction."""
    began = time.monotonic()
    with container(tag) as url:
        while time.monotonic() - began < 300:
            request = urllib.request.Request(
                f"{url}/invocations",
                ROWS,
                {"Content-Type": "application/json"},
            )
            try:
                with urllib.request.urlopen(request, timeout=10):
                    return time.monotonic() - began
            except urllib.error.HTTPError as error:
                if error.code < 500:
                    sys.exit(f"{tag}: {error.read()!r}")
            except OSError:
                pass
            time.sleep(0.02)
    sys.exit(f"{tag} does not answer")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--base-image", default=BASE_IMAGE)
    parser.add_argument("--starts", type=int, default=3, help="alternating starts per image (3)")
    options = parser.parse_args()
    base = options.base_image
    print(f"base image {base}: {image_size(base):,.0f} MB")
    print(f"{'image':<40}      MB  of MLflow's  first build, s  run to 1st response, s")
    theirs, ours = measure(base, options.starts)
    print_line("mlflow models build-docker", theirs, theirs)
    print_line("onnxserve build-docker", ours, theirs)


@dataclass(frozen=True)
class Image:
    """The figures of an image: its megabytes, the seconds of its first build, and the
    seconds from each start to the first response.
    """

    size: float
    build_seconds: float
    starts: list[float]


def measure(base: str, rounds: int) -> tuple[Image, Image]:
    """Return the figures of MLflow's image and of ours, whose starts alternate."""
    tags = ("onnxserve-benchmark:mlflow", "onnxserve-benchmark:onnxserve")
    with tempfile.TemporaryDirectory() as temporary:
        theirs, ours = save_both(Path(temporary))
        try:
            began = time.monotonic()
            build_mlflows(theirs, Path(temporary, "context"), base, tags[0])
            between = time.monotonic()
            build_ours(ours, base, tags[1])
            seconds = (between - began, time.monotonic() - between)
            starts: tuple[list[float], list[float]] = ([], [])
            for _ in range(rounds):
                for tag, of_image in zip(tags, starts, strict=True):
                    of_image.append(seconds_to_answer(tag))
            first, second = map(Image, map(image_size, tags), seconds, starts)
            return first, second
        finally:
            docker("rmi", "-f", *tags)


def print_line(name: str, image: Image, base: Image) -> None:
    share = f"{image.size / base.size:.0%}"
    print(
        f"{name:<40} {image.size:>7,.0f} {share:>12} {image.build_seconds:>15.0f} "
        f"{statistics.median(image.starts):>23.1f}",
    )


if __name__ == "__main__":
    main()
