"""The record of a registered version: the facts about it in MLflow's registry, its
files, its run and its gate report.

A version that MLflow's `copy_model_version` created has the source models:/X/7. It has
the gate of this original version, unless the copy itself was judged. A fact that cannot
be read is empty, and `missing` has the reason.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from google.protobuf.message import DecodeError
from pydantic import TypeAdapter

from mlflow_deploy_plugin.core.errors import (
    InvalidArtifact,
    InvalidConfig,
    NotFound,
    RegistryRefused,
)
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.mlmodel import FLAVOR, MALFORMED, MLMODEL, read_mlmodel
from mlflow_deploy_plugin.core.registry import tags
from mlflow_deploy_plugin.core.registry.connection import (
    refuse_folder,
    registry_client,
    registry_errors,
)
from mlflow_deploy_plugin.core.registry.model_files import fetch
from mlflow_deploy_plugin.core.registry.model_uri import parse_model_uri
from mlflow_deploy_plugin.core.registry.resolution import GIT_COMMIT_TAG, resolve
from mlflow_deploy_plugin.core.registry.runs import mlflow_page
from mlflow_deploy_plugin.core.statedir.files import temporary_folder
from mlflow_deploy_plugin.promote.gate.run import GATE_JSON_FILE
from mlflow_deploy_plugin.promote.gate.verdict import CheckResult, GateVerdict

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from onnx import GraphProto, NodeProto

REPORT_RUN = re.compile(r"(?:^|/runs/|[?&]run=)([0-9a-f]{32})(?![0-9a-f])")
"""The id of the run in the address of a gate report."""
_T = TypeVar("_T")
FetchFile = Callable[[str, Path, str], Path]
"""A function that copies a file (URI of its folder, local folder, name). Raises
NotFound.
"""


@dataclass(frozen=True)
class RecordedRun:
    """The run that logged the version. All facts are empty if it cannot be read.

    Attributes:
        datasets: the digest of each dataset by its name.
        dataset_rows: the number of rows of each dataset whose profile has the number.
    """

    run_id: str
    started_at: datetime
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    datasets: Mapping[str, str]
    dataset_rows: Mapping[str, int]

    @property
    def user_metrics(self) -> Mapping[str, float]:
        """The metrics without those of the proof, which `log_model` logs."""
        return {
            name: value for name, value in self.metrics.items() if not name.startswith("onnxserve.")
        }

    @staticmethod
    def read(run_id: str, client: Any) -> "RecordedRun":
        """Return the run that logged the version. Raises NotFound without a run id."""
        if not run_id:
            raise NotFound("the version does not name a run")
        run = client.get_run(run_id)
        datasets = [entry.dataset for entry in run.inputs.dataset_inputs]
        counts = {}
        for dataset in datasets:
            with suppress(ValueError, AttributeError):  # A profile may have any text.
                counts[dataset.name] = json.loads(dataset.profile or "{}").get("num_rows")
        return RecordedRun(
            run_id=run_id,
            started_at=_utc_time(run.info.start_time),
            params=run.data.params,
            metrics=run.data.metrics,
            tags=run.data.tags,
            datasets={dataset.name: dataset.digest for dataset in datasets},
            dataset_rows={name: rows for name, rows in counts.items() if isinstance(rows, int)},
        )


@dataclass(frozen=True)
class GateEvidence:
    """A verdict of the gate on a version.

    Attributes:
        judged: the version (models:/X/7), which may be the original of a copy; empty
            without a verdict.
        run_id: the run with the report.
        against: the version with which the gate has compared it, or an empty text.
        checks: empty if the report cannot be read.
    """

    judged: str
    status: tags.GateStatus
    run_id: str
    against: str = ""
    checks: tuple[CheckResult, ...] = ()

    @staticmethod
    def of(entry: "ModelVersion") -> "GateEvidence":
        """Return the verdict from the tags, without its checks. Raises NotFound without
        a verdict.
        """
        uri = _version_uri(entry)
        if tags.GATE_TAG not in entry.tags:
            raise NotFound(
                f"{uri} has no gate report; run `onnxserve gate "
                f"models:/{entry.name}/{entry.version}`"
            )
        status = tags.gate_status_of(entry.tags)
        match = REPORT_RUN.search(status.report)
        run_id = match[1] if match else ""
        return GateEvidence(uri, status, run_id)

    def with_checks(self, client: Any, fetch_file: FetchFile, folder: Path) -> "GateEvidence":
        """Return the verdict with the checks of its report. A copy has the tags of its
        original, which was judged.
        """
        file = fetch_file(client.get_run(self.run_id).info.artifact_uri, folder, GATE_JSON_FILE)
        verdict = TypeAdapter(GateVerdict).validate_json(file.read_bytes())
        judged = f"models:/{verdict.model}/{verdict.version}"
        return replace(self, judged=judged, against=verdict.against, checks=verdict.checks)


_NO_RUN = RecordedRun("", datetime.min, {}, {}, {}, {}, {})
_NO_VERDICT = GateEvidence("", tags.GateStatus(), "")


@dataclass(frozen=True)
class VersionRecord:
    """The facts about one registered version.

    Attributes:
        uri: the address models:/NAME/VERSION.
        url: the URL of the version's page, or an empty text.
        registered_by: the account that registered the version, if the registry has
            recorded it; otherwise empty.
        original: the version that this version is a copy of, such as models:/X/7; empty
            for any other version.
        mlmodel: the content of the MLmodel file.
        signature: the type of each input, output and parameter.
        requirements: the versions of the packages for serving.
        environment: the versions of all packages of the training.
        graph: the number of bytes, the opsets, and the number of nodes per operator of
            the ONNX file.
        missing: the reason for each missing part, by the name of the part.
    """

    name: str
    version: str
    uri: str
    url: str
    description: str
    tags: Mapping[str, str]
    created_at: datetime
    registered_by: str
    original: str
    run: RecordedRun
    mlmodel: Mapping[str, Any]
    signature: Mapping[str, str]
    requirements: Mapping[str, str]
    environment: Mapping[str, str]
    graph: Mapping[str, int]
    gate: GateEvidence
    missing: Mapping[str, str]

    @property
    def section(self) -> Mapping[str, Any]:
        """The section of the flavor `onnxserve` in the MLmodel file; empty for any
        other flavor.
        """
        return dict(self.mlmodel.get("flavors", {}).get(FLAVOR, {}))

    @property
    def provenance(self) -> Mapping[str, Any]:
        return dict(self.section.get("provenance", {}))

    @property
    def git_commit(self) -> str:
        all_tags = {**self.run.tags, **self.tags}
        return str(self.provenance.get("git_commit") or all_tags.get(GIT_COMMIT_TAG, ""))

    @property
    def datasets(self) -> Mapping[str, str]:
        """The digest of each dataset by name: the saved dataset, the rows of a
        retraining, the datasets of the run.
        """
        saved = self.provenance
        digests = {str(saved.get("dataset_name", "dataset")): str(saved.get("dataset_digest", ""))}
        digests["retraining"] = self.tags.get(tags.DATA_DIGEST_TAG, "")
        digests |= self.run.datasets
        return {name: digest for name, digest in digests.items() if digest}


def read_record(model_uri: str) -> VersionRecord:
    """Read the record of the version that the URI selects, with MLflow's client.

    Raises InvalidConfig if the URI does not select a registered version, NotFound, and
    RegistryUnavailable.
    """
    resolved = resolve(model_uri)
    if parse_model_uri(resolved.source).kind != "version":
        raise InvalidConfig(
            f"{model_uri} is not a registered version; use models:/NAME/VERSION or "
            "models:/NAME@ALIAS"
        )

    def fetch_file(folder_uri: str, to: Path, name: str) -> Path:
        refuse_folder(folder_uri)
        return fetch(f"{folder_uri}/{name}", to, name)

    return record_of(resolved.name, resolved.version, registry_client(), fetch_file)


def record_of(name: str, version: str, client: Any, fetch_file: FetchFile) -> VersionRecord:
    """Read the record of a version. Raises NotFound and RegistryUnavailable.

    `client` is MLflow's client or, in MLflow's server, an object with the same methods
    (`ui/guard/mlflow_stores.py`).
    """
    uri = f"models:/{name}/{version}"
    parts = _Parts(uri)
    with registry_errors(uri), temporary_folder("onnxserve-record-") as folder:
        entry: ModelVersion = client.get_model_version(name, version)
        file = partial(fetch_file, client.get_model_version_download_uri(name, version), folder)
        original = parts.read("original", partial(original_of, entry, client), entry)
        mlmodel: Mapping[str, Any] = parts.read(
            "model",
            lambda: read_mlmodel(file(MLMODEL).parent),
            {},
        )
        run_id = entry.run_id or str(mlmodel.get("run_id") or "")
        judged = entry if tags.GATE_TAG in entry.tags else original
        gate = parts.read("gate", partial(GateEvidence.of, judged), _NO_VERDICT)
        if gate.judged:
            with_checks = partial(gate.with_checks, client, fetch_file, folder)
            gate = parts.read("gate report", with_checks, gate)
        return VersionRecord(
            name=name,
            version=version,
            uri=uri,
            url=version_page(name, version),
            description=entry.description or "",
            tags=entry.tags,
            created_at=_utc_time(entry.creation_timestamp),
            registered_by=entry.user_id or "",
            original="" if original is entry else _version_uri(original),
            run=parts.read("run", partial(RecordedRun.read, run_id, client), _NO_RUN),
            mlmodel=mlmodel,
            signature=parts.read("signature", partial(_column_types, mlmodel), {}),
            requirements=parts.read(
                "requirements",
                lambda: _read_packages(file("requirements.txt")),
                {},
            ),
            environment=parts.read(
                "environment", lambda: _read_packages(file("requirements.lock")), {}
            ),
            graph=parts.read("graph", partial(_count_graph, mlmodel, file), {}),
            gate=gate,
            missing=parts.missing,
        )


@dataclass(frozen=True)
class _Parts:
    """The reader of the parts of a version, with the reason for each missing part."""

    uri: str
    missing: dict[str, str] = field(default_factory=dict)

    def read(
        self,
        part: str,
        read: Callable[[], _T],
        otherwise: _T,
    ) -> _T:
        """Return the part, or `otherwise` if it does not exist, may not be read or is
        damaged.
        """
        what = f"the {part} of {self.uri}"
        try:
            with registry_errors(what):
                return read()
        except (NotFound, RegistryRefused, InvalidArtifact, InvalidConfig) as error:
            self.missing[part] = error.message
        except MALFORMED as error:
            self.missing[part] = f"{what} cannot be understood: {one_line(error, 200)}"
        return otherwise


def version_page(name: str, version: str) -> str:
    """Return the URL of a version's page; empty if the server has no pages."""
    return mlflow_page(f"models/{quote(name, safe='')}/versions/{quote(version)}")


def _version_uri(entry: "ModelVersion") -> str:
    return f"models:/{entry.name}/{entry.version}"


def _utc_time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def original_of(entry: "ModelVersion", client: Any) -> "ModelVersion":
    """Return the version from which MLflow copied this version, or the version itself.
    Raises NotFound.
    """
    source = parse_model_uri(str(entry.source))
    if source.kind == "version":
        return original_of(client.get_model_version(source.name, source.selector), client)
    return entry


def _column_types(mlmodel: Mapping[str, Any]) -> dict[str, str]:
    """Return the JSON text of each column by its side and name, such as `inputs age`,
    or its number if it has no name.
    """
    types = {}
    for side, text in (mlmodel.get("signature") or {}).items():
        for number, entry in enumerate(json.loads(text or "[]")):
            types[f"{side} {entry.get('name', number)}"] = json.dumps(entry)
    return types


def _read_packages(file: Path) -> dict[str, str]:
    """Return the version of each package in a file for `pip install -r`. A line without
    == has an empty version.
    """
    versions = {}
    for line in file.read_text().splitlines():
        if requirement := line.partition("#")[0].strip():
            name, _, version = requirement.partition("==")
            versions[name] = version
    return versions


def _count_graph(
    mlmodel: Mapping[str, Any],
    file: Callable[[str], Path],
) -> dict[str, int]:
    """Return the number of bytes, with external weights, the opsets, and the number of
    nodes per operator of the ONNX file.

    Raises NotFound without an ONNX form, and InvalidArtifact if the file is damaged.
    """
    flavors = mlmodel.get("flavors", {})
    section = flavors.get(FLAVOR) or flavors.get("onnx")
    if section is None:
        raise NotFound("the version has no ONNX form")
    path = file(str(section["data"]))
    import onnx  # The import takes 0.2 s, and most commands do not need it.

    counts = Counter(bytes=path.stat().st_size)
    try:
        model = onnx.load(str(path), load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "length":
                    counts["bytes"] += int(entry.value)
    except (DecodeError, ValueError) as error:
        # `registry_errors` would attribute an error of google.protobuf to Google's
        # storage.
        raise InvalidArtifact(f"the ONNX file cannot be read: {one_line(error, 200)}") from None
    for opset in model.opset_import:
        counts[f"opset {opset.domain or 'ai.onnx'}"] = opset.version
    for node in _nodes(model.graph):
        # The domain of ONNX's own operators is empty.
        name = f"{node.domain}.{node.op_type}".lstrip(".")
        counts[f"operator {name}"] += 1
    return counts


def _nodes(graph: "GraphProto") -> "Iterator[NodeProto]":
    """Yield the nodes of a graph and of its subgraphs."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from _nodes(attribute.g)
