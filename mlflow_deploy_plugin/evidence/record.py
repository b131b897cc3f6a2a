"""The record of a registered version: the facts about it in MLflow's registry, its files, its run and its gate report.

A version that MLflow's `copy_model_version` created has the source models:/X/7. It has the run and the gate of this
original version, unless the copy itself was judged. A fact that cannot be read is empty, and `missing` has the reason.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from google.protobuf.message import DecodeError

from mlflow_deploy_plugin.errors import InvalidArtifact, InvalidConfig, NotFound, RegistryRefused
from mlflow_deploy_plugin.gate.verdict import CheckResult
from mlflow_deploy_plugin.messages import one_line
from mlflow_deploy_plugin.registry import parse_model_uri, registry_client, registry_errors, resolve, tags
from mlflow_deploy_plugin.registry.model_files import fetch
from mlflow_deploy_plugin.registry.resolution import GIT_COMMIT_TAG
from mlflow_deploy_plugin.registry.runs import mlflow_page
from mlflow_deploy_plugin.runtime import FLAVOR, MLMODEL, PYTHON_FUNCTION, read_mlmodel
from mlflow_deploy_plugin.runtime.artifact import MALFORMED, PYFUNC_PARITY
from mlflow_deploy_plugin.statedir.files import temporary_folder

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

_RUN = re.compile(r"(?:^|/runs/)([0-9a-f]{32})(?![0-9a-f])")
"""The id of the run in the address of a gate report."""
_PACKAGE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(.*)")
_T = TypeVar("_T")


@dataclass(frozen=True)
class RecordSource:
    """Access to MLflow: its client or, in MLflow's own server, its stores, which have the same methods.

    Runs are read only with `tracking`. `fetch` copies a file (address of its folder, local folder, name) or raises
    NotFound. `page` returns the URL of a page of MLflow's UI by its route. `may_read` is False for hidden models.
    """

    registry: Any
    tracking: Any | None
    fetch: Callable[[str, Path, str], Path]
    page: Callable[[str], str]
    may_read: Callable[[str], bool] = lambda model: True

    def run(self, run_id: str) -> Any:
        if not run_id:
            raise NotFound("the version does not name a run")
        if self.tracking is None:
            raise NotFound(f"only an administrator may read the run {run_id} here")
        return self.tracking.get_run(run_id)


@dataclass(frozen=True)
class RecordedRun:
    """The run that logged the version. `datasets` has the digest of each dataset by its name."""

    run_id: str
    url: str
    started_at: datetime
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    datasets: Mapping[str, str]


@dataclass(frozen=True)
class GraphFacts:
    """The content of an ONNX file with its subgraphs.

    `operators` has the number of nodes by operator, and `opsets` the version of each operator set by its domain.
    `size_bytes` includes external weights. `parameters` is the number of values in all initializers.
    """

    operators: Mapping[str, int]
    opsets: Mapping[str, int]
    ir_version: int
    size_bytes: int
    parameters: int


@dataclass(frozen=True)
class GateEvidence:
    """A verdict of the gate on the version `judged` (models:/X/7), which may be the original of a copy.

    `report` is the URL of the report or RUN_ID/gate_report.html. `checks` is empty if the report cannot be read.
    """

    judged: str
    status: tags.GateStatus
    at: str
    against: str
    report: str
    run_id: str
    checks: tuple[CheckResult, ...] = ()


@dataclass(frozen=True)
class VersionRecord:
    """The facts about one registered version.

    Attributes:
        uri / url: the address models:/NAME/VERSION, and the URL of the version's page or an empty text.
        original: the version that this version is a copy of, such as models:/X/7; empty for any other version.
        mlmodel / signature: the content of the MLmodel file, and the type of each input, output and parameter.
        requirements / environment: the versions of the packages for serving, and of all packages of the training.
        missing: the reason for each missing part, by the name of the part.
    """

    name: str
    version: str
    uri: str
    url: str
    description: str
    tags: Mapping[str, str]
    aliases: tuple[str, ...]
    stage: str
    created_at: datetime
    original: str
    run: RecordedRun | None
    mlmodel: Mapping[str, Any]
    signature: Mapping[str, str]
    requirements: Mapping[str, str]
    environment: Mapping[str, str]
    graph: GraphFacts | None
    gate: GateEvidence | None
    missing: Mapping[str, str]

    @property
    def flavor(self) -> str:
        """The flavor that serves the version; empty if the MLmodel file cannot be read."""
        return next((name for name in (FLAVOR, "onnx", PYTHON_FUNCTION) if name in self.mlmodel.get("flavors", ())), "")

    @property
    def section(self) -> Mapping[str, Any]:
        """The section of the flavor `onnxserve` in the MLmodel file; empty for any other flavor."""
        return dict(self.mlmodel["flavors"][FLAVOR]) if self.flavor == FLAVOR else {}

    @property
    def parity(self) -> Mapping[str, Any]:
        """The state and the figures of the parity proof that was made when the version was logged."""
        default = PYFUNC_PARITY if self.flavor == PYTHON_FUNCTION else "no-original"
        return {"state": default, **self.section.get("parity", {})}

    @property
    def git_commit(self) -> str:
        of_version = dict(self.run.tags if self.run else {}) | dict(self.tags)
        return str(self.section.get("provenance", {}).get("git_commit") or of_version.get(GIT_COMMIT_TAG, ""))

    @property
    def datasets(self) -> Mapping[str, str]:
        """The digest of each dataset by name: the saved dataset, the rows of a retraining, the datasets of the run."""
        saved = self.section.get("provenance", {})
        named = {str(saved.get("dataset_name", "dataset")): str(saved.get("dataset_digest", ""))}
        named |= {"retraining": self.tags.get(tags.DATA_DIGEST_TAG, ""), **(self.run.datasets if self.run else {})}
        return {name: digest for name, digest in named.items() if digest}


def read_record(model_uri: str) -> VersionRecord:
    """Read the record of the version that the URI selects, with MLflow's client.

    Raises InvalidConfig if the URI does not select a registered version, NotFound, and RegistryUnavailable.
    """
    resolved = resolve(model_uri)
    if parse_model_uri(resolved.source).kind != "version":
        raise InvalidConfig(f"{model_uri} is not a registered version; use models:/NAME/VERSION or models:/NAME@ALIAS")

    def fetch_file(address: str, folder: Path, name: str) -> Path:
        try:
            return fetch(f"{address}/{name}", folder, f"the file {name}")
        except NotFound:
            raise NotFound(f"the file {name} does not exist") from None

    client = registry_client()
    return record_of(resolved.name, resolved.version, RecordSource(client, client, fetch_file, mlflow_page))


def record_of(name: str, version: str, source: RecordSource) -> VersionRecord:
    """Read the record of a version from `source`. Raises NotFound and RegistryUnavailable."""
    uri, missing = f"models:/{name}/{version}", dict[str, str]()

    def attempt(part: str, read: Callable[[], _T], otherwise: _T) -> _T:
        """Return the part, or `otherwise` if it does not exist, may not be read or is damaged."""
        try:
            with registry_errors(f"the {part} of {uri}"):
                return read()
        except (NotFound, RegistryRefused, InvalidArtifact, InvalidConfig) as error:
            missing[part] = error.message
        except MALFORMED as error:
            missing[part] = f"the {part} of {uri} cannot be understood: {one_line(error, 200)}"
        return otherwise

    with registry_errors(uri), temporary_folder("onnxserve-record-") as folder:
        entry: ModelVersion = source.registry.get_model_version(name, version)
        address = source.registry.get_model_version_download_uri(name, version)
        file = partial(source.fetch, address, folder)
        original = attempt("original", partial(_original, entry, source), entry)
        mlmodel = attempt("model", lambda: _mlmodel(file(MLMODEL)), dict[str, Any]())
        run_id = entry.run_id or original.run_id or str(mlmodel.get("run_id") or "")
        gate = attempt("gate", partial(_gate, entry if tags.GATE_TAG in entry.tags else original), None)
        if gate is not None:
            gate = attempt("gate report", partial(_with_checks, gate, original, source, folder), gate)
        return VersionRecord(
            name=name,
            version=version,
            uri=uri,
            url=source.page(f"models/{quote(name, safe='')}/versions/{quote(version)}"),
            description=entry.description or "",
            tags=entry.tags,
            aliases=tuple(entry.aliases),
            stage="" if entry.current_stage == "None" else entry.current_stage or "",
            created_at=_time(entry.creation_timestamp),
            original="" if original is entry else _uri(original),
            run=attempt("run", partial(_training_run, run_id, source), None),
            mlmodel=mlmodel,
            signature=attempt("signature", partial(_signature, mlmodel), {}),
            requirements=attempt("requirements", lambda: _packages(file("requirements.txt")), {}),
            environment=attempt("environment", lambda: _packages(file("requirements.lock")), {}),
            graph=attempt("graph", partial(_graph, mlmodel, file), None),
            gate=gate,
            missing=missing,
        )


def _uri(entry: "ModelVersion") -> str:
    return f"models:/{entry.name}/{entry.version}"


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _original(entry: "ModelVersion", source: RecordSource) -> "ModelVersion":
    """Return the version from which MLflow copied this version, or the version itself. Raises NotFound."""
    copied = parse_model_uri(entry.source) if str(entry.source).startswith("models:/") else None
    if copied is None or copied.kind != "version":
        return entry
    if not source.may_read(copied.name):
        raise NotFound(f"the caller may not read the original {entry.source}")
    return _original(source.registry.get_model_version(copied.name, copied.selector), source)


def _mlmodel(file: Path) -> dict[str, Any]:
    """Return the content of an MLmodel file whose parts for the record are mappings. Raises one of `MALFORMED`."""
    document = {"flavors": {}, **read_mlmodel(file.parent)}
    section = document["flavors"].get(FLAVOR, {})
    parity = section.get("parity", {})
    for part in (*document["flavors"].values(), parity, section.get("provenance", {}), *parity.get("outputs", ())):
        part.keys()
    return document


def _signature(mlmodel: Mapping[str, Any]) -> dict[str, str]:
    from mlflow.models import ModelSignature  # The import takes a second, and few commands need it.

    if not mlmodel.get("signature"):
        raise NotFound("the version has no signature")
    signature = ModelSignature.from_dict(mlmodel["signature"])
    sides = {"input": signature.inputs, "output": signature.outputs, "parameter": signature.params}
    return {
        f"{side} {position if spec.name is None else spec.name}": repr(spec)
        for side, schema in sides.items()
        for position, spec in enumerate(schema or ())
    }


def _packages(file: Path) -> dict[str, str]:
    """Return the version or address of each package in a file for `pip install -r`, by its normalized name."""
    lines = (line.partition("#")[0].strip() for line in file.read_text().splitlines())
    parts = [match.groups() for line in lines if (match := _PACKAGE.fullmatch(line))]
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in parts}


def _graph(mlmodel: Mapping[str, Any], file: Callable[[str], Path]) -> GraphFacts:
    import onnx  # The import takes 0.2 s, and most commands do not need it.
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    flavors = mlmodel.get("flavors", {})
    if (section := flavors.get(FLAVOR) or flavors.get("onnx")) is None:
        raise NotFound("the version has no ONNX form")
    path = file(str(section["data"]))
    try:
        model = onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise InvalidArtifact(f"the ONNX file cannot be read: {one_line(error, 200)}") from None
    graphs, weights = [model.graph], []
    nodes = [node for function in model.functions for node in function.node]
    while graphs:
        graph = graphs.pop()
        weights += graph.initializer
        nodes += graph.node
        graphs += [part for node in graph.node for entry in node.attribute for part in (*entry.graphs, entry.g)]
    external = sum(ExternalDataInfo(tensor).length or 0 for tensor in weights if uses_external_data(tensor))
    return GraphFacts(
        operators=Counter(f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in nodes),
        opsets={entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        ir_version=model.ir_version,
        size_bytes=path.stat().st_size + external,
        parameters=sum(prod(tensor.dims) for tensor in weights),
    )


def _training_run(run_id: str, source: RecordSource) -> RecordedRun:
    run = source.run(run_id)
    if run.info.lifecycle_stage == "deleted":
        raise NotFound(f"the run {run_id} was deleted")
    url = source.page(f"experiments/{quote(run.info.experiment_id)}/runs/{quote(run_id)}")
    datasets = {entry.dataset.name: entry.dataset.digest for entry in run.inputs.dataset_inputs}
    return RecordedRun(
        run_id, url, _time(run.info.start_time), run.data.params, run.data.metrics, run.data.tags, datasets
    )


def _gate(entry: "ModelVersion") -> GateEvidence:
    status = tags.gate_status_of(entry.tags)
    if tags.GATE_TAG not in entry.tags:
        raise NotFound(f"{_uri(entry)} has no gate report; run `onnxserve gate {entry.name} {entry.version}`")
    at, against = (entry.tags.get(tag, "") for tag in (tags.GATE_AT_TAG, tags.GATE_AGAINST_TAG))
    run = _RUN.search(status.report)
    return GateEvidence(_uri(entry), status, at, against, status.report, run[1] if run else "")


def _with_checks(gate: GateEvidence, original: "ModelVersion", source: RecordSource, folder: Path) -> GateEvidence:
    """Return the verdict with the checks of its report. A copy may have the tags of `original`, which was judged."""
    address = source.run(gate.run_id).info.artifact_uri
    verdict = json.loads(source.fetch(address, folder, "gate.json").read_text())
    judged = f"models:/{verdict['model']}/{verdict['version']}"
    if judged not in (gate.judged, _uri(original)):
        raise NotFound(f"the report in the run {gate.run_id} is about {judged}")
    checks = [
        (str(check["name"]), check["state"], check["reason"], dict(check["figures"])) for check in verdict["checks"]
    ]
    return replace(gate, judged=judged, checks=tuple(CheckResult(*check) for check in checks))
