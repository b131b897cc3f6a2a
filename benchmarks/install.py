"""Measure the size of an installation: distributions and megabytes of empty
environments, one per extra.

    python benchmarks/install.py
    python benchmarks/install.py --checkout /path/to/another --extras cpu

`requirements of a model` is what `mlflow models serve` and `build-docker` install for a
model of `log_model`, including MLflow. The script needs uv and a package index.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
UV = Path(sys.prefix, "bin", "uv")
EXTRAS = (
    "",
    "cpu",
    "cpu,sklearn",
    "cpu,grpc,otel,redis,s3",
    "cpu,monitoring",
    "cpu,controller,ui,sklearn",
)


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True)


def measure(requirements: list[str]) -> tuple[int, int]:
    """Return the number of distributions and the megabytes of an environment with only
    `requirements`.
    """
    with tempfile.TemporaryDirectory() as folder:
        run(UV, "venv", "-q", "--python", sys.executable, folder)
        run(
            UV,
            "pip",
            "install",
            "-q",
            "--link-mode",
            "copy",
            "--python",
            Path(folder, "bin", "python"),
            *requirements,
        )
        site = next(Path(folder, "lib").glob("python3*/site-packages"))
        size = sum(
            path.stat().st_size
            for path in site.rglob("*")
            if path.is_file() and not path.is_symlink()
        )
        return len(list(site.glob("*.dist-info"))), size // 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkout", type=Path, default=ROOT, help="of the package")
    parser.add_argument("--extras", nargs="*", default=EXTRAS)
    asked = parser.parse_args()
    print(f"{'installed':<44} distributions      MB")
    for extras in asked.extras:
        name = f"[{extras}]" if extras else ""
        count, size = measure([f"{asked.checkout}{name}"])
        print(f"{'.' + name:<44} {count:>13} {size:>7}")
    count, size = measure([f"{asked.checkout}[cpu]", "mlflow"])
    print(f"{'requirements of a model, with mlflow':<44} {count:>13} {size:>7}")


if __name__ == "__main__":
    main()
