"""Docker's command line: builds, pushes and logins to ECR. A failure raises an error
with one line.
"""

import base64
import json
import re
import subprocess
import tempfile
from collections.abc import Sequence
from typing import IO, Any

from mlflow_deploy_plugin.core.errors import BuildFailed, NotInstalled, Unauthenticated
from mlflow_deploy_plugin.core.logs import ProgressCallback
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.ship.images.context import BuildContext

_ECR = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr(-fips)?\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(\.cn)?"
)
_CAUSE = re.compile(r"\b(error|failed|denied|not found|cannot|no such|refused)\b", re.I)
_NOISE = re.compile(r"^(\x1b\[[0-9;]*m|#\d+ |\d+\.\d+ |[ >-]+)+|\x1b\[[0-9;]*m")
_KEPT = 40
_RIGHTS = (
    "--user 10001 --network none --read-only --cap-drop ALL --security-opt no-new-privileges --init"
)
MINIMAL_RIGHTS = (*_RIGHTS.split(), "--tmpfs", "/tmp", "--tmpfs", "/var/lib/onnxserve")


def build(
    context: BuildContext, tag: str, report: ProgressCallback, options: Sequence[str] = ()
) -> dict[str, Any]:
    """Build the context's image as `tag` with `docker build` options, and return its
    `image_fields`.

    Raises BuildFailed, with Docker's last message, if there is no engine, the build
    failed, or the builder does not store its images in the engine. Raises NotInstalled
    if the docker command is missing.
    """
    with tempfile.TemporaryFile(prefix="onnxserve-context-") as archive:
        context.write(archive)
        archive.seek(0)
        docker(
            "build",
            "-t",
            tag,
            *options,
            "-",
            stdin=archive,
            report=report,
            what=f"the image {tag} was not built",
        )
    fields = image_fields(tag)
    if fields is None:
        raise BuildFailed(
            f"the image {tag} was built but is not in the engine: set BUILDX_BUILDER=default, the "
            "builder that stores images in the engine"
        )
    return fields


def image_fields(name: str) -> dict[str, Any] | None:
    """Return the fields of `docker image inspect` for a local image, or None. Raises
    BuildFailed, NotInstalled.
    """
    if not docker("image", "ls", "-q", name, what="Docker's images cannot be listed"):
        return None
    return {**json.loads(docker("image", "inspect", name, what=f"{name} cannot be inspected"))[0]}


def push_image(name: str, report: ProgressCallback) -> str:
    """Push an image to the registry with which its name begins, and return the digest
    of the pushed image.

    For Amazon's ECR, boto3 fetches the password with the caller's AWS credentials and
    creates a missing repository. Other registries use the credentials of `docker
    login`. Raises BuildFailed if the registry refuses or does not answer, NotInstalled
    if ECR needs boto3, and Unauthenticated if AWS refuses the credentials.
    """
    host, _, repository = name.partition("/")
    if ecr := _ECR.fullmatch(host):
        repository = re.sub("[:@].*", "", repository)
        try:
            import boto3
            from botocore.exceptions import BotoCoreError, ClientError
        except ModuleNotFoundError:
            raise NotInstalled(
                "a push to ECR needs boto3: pip install 'mlflow-onnxserve[s3]'"
            ) from None
        account = ecr["account"]
        try:
            client = boto3.client("ecr", region_name=ecr["region"])
            answer = client.get_authorization_token(registryIds=[account])
            try:
                client.describe_repositories(registryId=account, repositoryNames=[repository])
            except client.exceptions.RepositoryNotFoundException:
                client.create_repository(registryId=account, repositoryName=repository)
        except (BotoCoreError, ClientError) as error:
            raise Unauthenticated(
                f"the login to ECR in {ecr['region']} failed: {one_line(error)}"
            ) from None
        token = answer["authorizationData"][0]["authorizationToken"]
        user, _, password = base64.b64decode(token).decode().partition(":")
        docker(
            "login",
            "--username",
            user,
            "--password-stdin",
            host,
            text=password,
            what=f"the login to {host} failed",
        )
    pushed = docker("push", name, report=report, what=f"the image {name} was not pushed")
    digest = re.search(r"digest: (sha256:[0-9a-f]{64})", pushed)
    return digest[1] if digest else ""


def image_sbom(name: str) -> bytes:
    """Return the bill of materials of an image, Python and Debian packages, in
    CycloneDX 1.6. Raises BuildFailed.
    """
    lister = ("--entrypoint", "onnxserve", name, "list-packages")
    return docker(
        "run", "--rm", *MINIMAL_RIGHTS, *lister, what=f"the packages of {name} cannot be listed"
    ).encode()


def docker(
    *arguments: str,
    what: str,
    stdin: IO[bytes] | None = None,
    text: str = "",
    report: ProgressCallback | None = None,
) -> str:
    """Run `docker ARGUMENTS` and return its output.

    Args:
        arguments: the command of docker and its options.
        what: the failed task, with which error messages begin.
        stdin: the input of the command.
        text: the input of the command as a text, instead of `stdin`.
        report: receives each line immediately; the output then includes standard error.
    """
    source = subprocess.PIPE if text else subprocess.DEVNULL
    try:
        process = subprocess.Popen(
            ["docker", *arguments],
            stdin=stdin or source,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if report else subprocess.PIPE,
            text=True,
            errors="replace",
        )
    except FileNotFoundError:
        raise NotInstalled(f"{what}: the docker command is not installed") from None
    with process:
        try:
            if report is None:
                output, errors = process.communicate(text or None)
            else:
                output = ""
                for line in process.stdout or ():
                    report(line.rstrip("\n"))
                    output += line
                errors = output
        except BaseException:
            process.kill()  # After Ctrl-C, the command would otherwise create its container later.
            process.wait()
            raise
    if process.returncode:
        last_lines = [_NOISE.sub("", line).strip() for line in errors.splitlines()[-_KEPT:]]
        messages = [line for line in last_lines if line]
        if not messages:
            raise BuildFailed(f"{what}: docker ended with status {process.returncode}")
        # The last line that tells a cause comes before the last line.
        causes = [
            line
            for line in messages[:-1]
            if _CAUSE.search(line) and line.partition(": ")[2] not in messages[-1]
        ]
        raise BuildFailed(f"{what}: {'; '.join([*causes[-1:], messages[-1]])}")
    return output
