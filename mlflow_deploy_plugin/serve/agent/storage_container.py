"""The checked files of a version in a folder, for other servers: KServe's storage
initializer and other init containers run `onnxserve fetch`.
"""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path

from mlflow_deploy_plugin.core.errors import InvalidArtifact, InvalidConfig
from mlflow_deploy_plugin.core.mlmodel import MLMODEL
from mlflow_deploy_plugin.core.registry.model_uri import missing_folder_message, parse_model_uri
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.statedir.files import locked
from mlflow_deploy_plugin.core.statedir.models import FetchedVersion
from mlflow_deploy_plugin.serve.agent.fetch import MlflowRegistry, ModelCache
from mlflow_deploy_plugin.serve.agent.followed import NEVER, FollowedModel, model_ref
from mlflow_deploy_plugin.serve.agent.resolver import PollPolicy, PyfuncPolicy, VersionResolver

_STAGING = ".onnxserve"
"""The subfolder for the download, from which checked files are moved without a copy."""


def fetch_into(model_uri: str, folder: Path, require: str) -> FetchedVersion:
    """Write the files of the version that the registry names into a folder, after the
    checks of the agent. Its own code is not run. The files of an earlier version are
    replaced after the checks.

    Args:
        require: as in `EndpointSpec`; empty without requirements.

    Raises:
        InvalidConfig: the URI is a folder, or `folder` cannot be written or has other
            files than those of a version.
        ModelError: the version is refused, or has a file `.onnxserve`.
        OnnxserveError: the version or its files cannot be fetched.
    """
    if parse_model_uri(model_uri).kind == "path":
        if not Path(model_uri).is_dir():
            raise InvalidConfig(missing_folder_message(model_uri))
        raise InvalidConfig(f"{model_uri} is a folder; the URI of a model is expected")
    config = {"require": require, "variants.fetched.allow_pyfunc": True}
    spec = new_endpoint("fetched", model_uri, config)
    staging = folder / _STAGING
    try:
        with locked(staging.with_suffix(".lock")), ExitStack() as held:
            held.callback(shutil.rmtree, staging, ignore_errors=True)
            earlier = set(folder.glob("*")) - set(folder.glob(f"{_STAGING}*"))
            if earlier and folder / MLMODEL not in earlier:
                raise InvalidConfig(
                    f"{folder} has other files than a version's; use an empty folder"
                )
            if staging.is_symlink():
                staging.unlink()
            shutil.rmtree(staging, ignore_errors=True)  # A killed container has left it.
            model = FollowedModel(report_at=NEVER)  # The registry may be read-only here.
            with ThreadPoolExecutor(1) as pool:
                resolver = VersionResolver(
                    MlflowRegistry(ModelCache(staging, folder)),
                    pool,
                    pool,
                    PollPolicy(1.0, False, time.monotonic),
                    PyfuncPolicy([spec]),
                    {model_ref(spec, spec.variants["fetched"]): model},
                )
                while not model.is_settled:
                    resolver.advance()
                    wait(resolver.pending())
            error = model.failure(model_uri)
            if error is not None:
                raise error
            version = model.version
            assert version is not None
            if any(version.folder.glob(f"{_STAGING}*")):
                raise InvalidArtifact(
                    f"{model_uri}: {_STAGING!r} is the name of the download's folder"
                )
            # A folder with some of the files always has MLmodel.
            for path in sorted(earlier, key=lambda path: path.name == MLMODEL):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            for path in sorted(version.folder.iterdir(), key=lambda path: path.name != MLMODEL):
                path.rename(folder / path.name)
    except OSError as error:
        raise InvalidConfig(f"{folder} cannot be written: {error.strerror}") from None
    return version
