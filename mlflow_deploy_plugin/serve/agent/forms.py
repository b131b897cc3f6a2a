"""Forms: a version without an ONNX form is converted when it is loaded, if its model
can be converted and the spec allows it.

Conversions run one at a time in processes that end
(`wrap/flavor/load_conversion.py`), with a low priority. The original answers until the
ONNX form is proven, and if it cannot be proven; a model file that always becomes ONNX
is not served before. Each result, also a failure, is stored in the state folder by the
digest of the original's files and the versions of the libraries. A conversion that ends
without a result, for example because the container's memory does not suffice, is tried
again at the next start, at most `_MOST_ATTEMPTS` times:

- `STATE/converted/<key>.json`: the result (`Conversion`)
- `CACHE/models/<digest>/`: the ONNX form, next to the fetched models

The results are not shared between servers, because they decide which files answer for
an approved or signed version.
"""

import hashlib
import logging
import os
import sys
import tempfile
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from pathlib import Path

from mlflow_deploy_plugin.core.errors import CommandFailed, OnnxserveError
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.mlmodel import FLAVOR, hash_folder
from mlflow_deploy_plugin.core.model_code import MODEL_CODE
from mlflow_deploy_plugin.core.packages import installed_version
from mlflow_deploy_plugin.core.processes.child import run_to_end
from mlflow_deploy_plugin.core.spec.parts import ConvertRule
from mlflow_deploy_plugin.core.statedir.files import read_state, write_state
from mlflow_deploy_plugin.core.statedir.models import Conversion, FetchedVersion
from mlflow_deploy_plugin.core.text_files import read_text
from mlflow_deploy_plugin.serve.agent.fetch import ModelCache
from mlflow_deploy_plugin.serve.runtime.pyfunc_artifact import read_served_artifact

_log = logging.getLogger(__name__)

CONVERTED = "converted"
"""The folder of the results in a state folder, and the form of a converted version."""
CONVERTING = "converting"
"""The form of an original that answers while it is converted."""
FORM = "form"
FORM_REASON = "form_reason"
"""The aspects of a version that name the form that answers (onnx, converted,
converting, original), and the proof of a converted form or the reason for an original.
"""
_MODULE = "mlflow_deploy_plugin.wrap.flavor.load_conversion"
_SECONDS = 900.0
_MOST_ATTEMPTS = 3
_LIBRARIES = (
    "mlflow-onnxserve",
    "mlflow",
    "mlflow-skinny",
    "numpy",
    "onnx",
    "onnxruntime",
    "scikit-learn",
    "skl2onnx",
    "xgboost",
    "xgboost-cpu",
    "lightgbm",
    "catboost",
    "torch",
    "keras",
    "tensorflow",
    "transformers",
)
"""The distributions whose versions decide the result of a conversion."""
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_WITHOUT_FORM = "it is a Python class of its own, or its library cannot be converted"


def original_form(version: FetchedVersion, reason: str, form: str = "original") -> FetchedVersion:
    """Return a version whose original answers for this reason."""
    aspects = {**version.aspects, FORM: form, FORM_REASON: reason}
    return version.model_copy(update={"aspects": aspects})


@dataclass
class Forms:
    """The forms of the versions of an agent. `pool` has one thread."""

    state_dir: Path
    cache: ModelCache
    pool: Executor
    _results: dict[str, Conversion] = field(default_factory=dict)
    _running: dict[str, "Future[Conversion]"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        libraries = [f"{name} {installed_version(name)}" for name in _LIBRARIES]
        self._environment = "\n".join([sys.version, *libraries])

    def best(self, version: FetchedVersion, rule: ConvertRule) -> FetchedVersion:
        """Return the form of a fetched version that answers now. A conversion that is
        allowed by the rule is started, and its result returned by a later call.
        """
        if version.aspects.get("flavor") != "python_function":
            return version.model_copy(update={"aspects": {**version.aspects, FORM: "onnx"}})
        if not version.rows:
            return original_form(version, _WITHOUT_FORM)
        if rule == "never":
            return original_form(version, "the spec does not convert it")
        if version.rows == "made" and rule == "example":
            reason = "it has no input example; variants.NAME.convert=always makes rows for a proof"
            return original_form(version, reason)
        key = self._key(version)
        result = self._result(key, version)
        if result is None:
            return original_form(version, "it is being converted", CONVERTING)
        if not result.digest:
            return original_form(version, result.reason)
        aspects = {
            "flavor": FLAVOR,
            "parity": result.parity,
            FORM: CONVERTED,
            FORM_REASON: result.proof,
        }
        changes = {
            "folder": self.cache.folder_of(result.digest),
            "digest": result.digest,
            "runs_code": False,
            "python": "",
            "original": version,
            "aspects": version.aspects | aspects,
        }
        return version.model_copy(update=changes)

    def wait(self, version: FetchedVersion) -> FetchedVersion:
        """Wait for the conversion of a version, and return the version. Runs in a
        thread of the fetches.
        """
        running = self._running.get(self._key(version))
        if running is not None:
            running.result()
        return version

    def refuse(self, version: FetchedVersion, reason: str) -> None:
        """Let the original answer from now on, because the workers cannot load its ONNX
        form.
        """
        failed = Conversion(reason=f"its ONNX form cannot be loaded: {one_line(reason, 300)}")
        self._save(self._key(version), failed)

    def _key(self, version: FetchedVersion) -> str:
        identity = "\0".join([version.content, version.rows, self._environment])
        return hashlib.sha256(identity.encode()).hexdigest()[:32]

    def _result(self, key: str, version: FetchedVersion) -> Conversion | None:
        """Return the result of a conversion; None while it waits or runs."""
        if key in self._running:
            if not self._running[key].done():
                return None
            self._save(key, self._running.pop(key).result())
        if key not in self._results:
            stored = self._stored(key)
            is_result = stored.digest or (stored.reason and not stored.attempts)
            if not is_result and stored.attempts < _MOST_ATTEMPTS:
                work = self.pool.submit(self._convert, key, version, stored.attempts + 1)
                self._running[key] = work
                return None
            self._results[key] = stored
        return self._results[key]

    def _stored(self, key: str) -> Conversion:
        """Return the stored result; an empty one if there is none, or the files of its
        form are not in the cache.
        """
        stored = read_state(self._file(key), Conversion) or Conversion()
        try:
            if stored.digest and not self.cache.holds(stored.digest):
                return Conversion()
        except OSError:  # Another agent has deleted the files.
            return Conversion()
        return stored

    def _save(self, key: str, result: Conversion) -> None:
        self._results[key] = result
        self._store(key, result)

    def _store(self, key: str, result: Conversion) -> None:
        try:
            write_state(self._file(key), result)
        except OSError as error:
            _log.error("the result of a conversion cannot be saved: %s", error.strerror)

    def _file(self, key: str) -> Path:
        return self.state_dir / CONVERTED / f"{key}.json"

    def _convert(self, key: str, version: FetchedVersion, attempt: int) -> Conversion:
        """Convert a version in a process, and return the result. Runs in the thread of
        `pool`. Raises no error.
        """
        label = f"{version.model} version {version.version}"
        attempts = attempt
        # This is what the next start finds if this process is killed meanwhile.
        self._store(key, Conversion(reason="its conversion ended this server", attempts=attempt))
        try:
            with tempfile.TemporaryDirectory(dir=self.cache.drafts, prefix="fetching-") as draft:
                target = Path(draft, "model")
                made = ["--made-rows"] if version.rows != "example" else []
                command = [sys.executable, "-B", "-m", _MODULE, *made, "--"]
                command += [str(version.folder), str(target), label]
                # The agent has permitted the code of the version.
                permits = {MODEL_CODE: str(version.runs_code).lower()}
                environment = {**os.environ, **dict.fromkeys(_THREADS, "1"), **permits}
                run_to_end(command, _SECONDS, environment=environment)
                if hash_folder(version.folder) != version.content:
                    reason = "its files were changed while it was converted"
                    return Conversion(reason=reason, attempts=attempt)
                proof = read_text(target.with_suffix(".proof"), "the proof")
                folder = self.cache.keep(target)
            _log.info("%s is converted to ONNX: %s", label, proof)
            parity = read_served_artifact(folder).parity_state
            return Conversion(digest=folder.name, proof=proof, parity=parity)
        except CommandFailed as error:
            reason = f"it cannot be converted: {one_line(error.message, 400)}"
            if error.exit_status is not None:
                attempts = 0
        except (OnnxserveError, OSError) as error:
            reason = f"it cannot be converted: {one_line(error, 400)}"
        _log.warning("%s: the original answers: %s", label, reason)
        return Conversion(reason=reason, attempts=attempts)
