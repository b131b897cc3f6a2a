"""The bill of materials of a registered version or of a running endpoint, in CycloneDX
1.6 (https://cyclonedx.org/capabilities/mlbom/).

A version is a component of the type `machine-learning-model` with its files and a model
card. Its datasets and packages are components on which the version depends.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound
from mlflow_deploy_plugin.core.mlmodel import hash_files
from mlflow_deploy_plugin.core.registry.connection import (
    redact_credentials,
    registry_client,
    registry_errors,
)
from mlflow_deploy_plugin.core.registry.model_files import download
from mlflow_deploy_plugin.core.statedir.files import temporary_folder
from mlflow_deploy_plugin.core.store.audit import describe_traffic
from mlflow_deploy_plugin.core.store.tables import Json
from mlflow_deploy_plugin.core.version import __version__
from mlflow_deploy_plugin.promote.evidence.record import VersionRecord, read_record
from mlflow_deploy_plugin.ship.deployments.endpoints import ObservedEndpoint

_LICENCE_TAG = "license"


@dataclass(frozen=True)
class _Version:
    """A version as a component.

    Attributes:
        parts: the datasets and packages. A package may be part of both the training
            and the serving.
        card: the model card, which the library cannot write.
    """

    component: Component
    parts: Sequence[Component] = ()
    card: Json = field(default_factory=dict)


def version_bom(model_uri: str) -> Json:
    """Return the document of the version that the URI selects.

    Raises InvalidConfig if the URI does not select a registered version, NotFound, and
    RegistryUnavailable.
    """
    version = _read_version(read_record(model_uri))
    return _document(version.component, [version])


def endpoint_bom(observed: ObservedEndpoint) -> Json:
    """Return the document of an endpoint with the versions that its workers have
    loaded. A version that is not in the registry has only its name and its number.
    Raises RegistryUnavailable.
    """
    endpoint = observed.endpoint
    facts = {
        "state": observed.observation.state,
        "target": endpoint.target,
        "traffic": describe_traffic(endpoint.spec),
    }
    application = Component(
        name=endpoint.name,
        type=ComponentType.APPLICATION,
        bom_ref=f"endpoint:{endpoint.name}",
        properties=_properties("onnxserve", facts),
    )
    versions = []
    wanted = observed.observation.wanted
    for variant, resolved in (wanted.variants if wanted else {}).items():
        workers = observed.observation.workers
        loaded = {worker.loaded(endpoint.name, variant).version for worker in workers}
        for number in sorted(loaded - {""}):
            try:
                versions.append(_read_version(read_record(f"models:/{resolved.model}/{number}")))
            except (InvalidConfig, NotFound):  # The version is not in the registry.
                reference = f"{resolved.model}/{number}"
                versions.append(_Version(_model(resolved.model, number, reference)))
    return _document(application, versions)


def _document(subject: Component, versions: Sequence[_Version]) -> Json:
    """Return the document about `subject`, which is an endpoint or the only version."""
    models = [version.component for version in versions if version.component is not subject]
    parts = sorted(
        chain.from_iterable(version.parts for version in versions),
        key=lambda part: part.scope is ComponentScope.REQUIRED,
    )
    # The last component of a reference is listed.
    listed = {part.bom_ref.value: part for part in (*models, *parts)}
    bom = Bom(components=listed.values())
    bom.metadata.component = subject
    bom.metadata.tools.components.add(Component(name="mlflow-onnxserve", version=__version__))
    bom.register_dependency(subject, models)
    for version in versions:
        bom.register_dependency(version.component, version.parts)
    document: Json = json.loads(JsonV1Dot6(bom).output_as_string())
    cards = {version.component.bom_ref.value: version.card for version in versions}
    for component in (document["metadata"]["component"], *document.get("components", ())):
        if cards.get(component["bom-ref"]):
            component["modelCard"] = cards[component["bom-ref"]]
    return document


def _model(name: str, version: str, reference: str) -> Component:
    return Component(
        name=name,
        version=version,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=reference,
    )


def _read_version(record: VersionRecord) -> _Version:
    component = _model(record.name, record.version, record.uri)
    missing = dict(record.missing)
    try:
        with temporary_folder("onnxserve-bom-") as folder:
            hashes = hash_files(download(record.uri, folder))
        component.components = [
            Component(
                name=str(name),
                type=ComponentType.FILE,
                bom_ref=f"{record.uri}/{name}",
                hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)],
            )
            for name, digest in hashes.items()
        ]
    except NotFound as error:
        missing["files"] = error.message
    datasets = [
        Component(
            name=name, version=digest, type=ComponentType.DATA, bom_ref=f"dataset:{name}@{digest}"
        )
        for name, digest in record.datasets.items()
    ]
    component.description = redact_credentials(record.description) or None
    with registry_errors(record.uri):
        inherited = registry_client().get_registered_model(record.name).tags
    if text := {**inherited, **record.tags}.get(_LICENCE_TAG):
        component.licenses = [LicenseFactory().make_from_string(text)]
    parity = record.section.get("parity", {})
    facts = {
        "framework": record.section.get("framework"),
        "framework_version": record.section.get("framework_version"),
        "parity": parity.get("state"),
        "parity_rows": parity.get("rows") or None,
        "git_commit": record.git_commit or None,
        "run_id": record.run.run_id or None,
        "page": record.url or None,
    }
    component.properties = [
        *_properties("onnxserve", facts),
        *_properties("onnxserve:missing", missing),
        *_properties("mlflow:tag", record.tags),
    ]
    packages = [
        *_packages(record.environment, ComponentScope.EXCLUDED),
        *_packages(record.requirements, ComponentScope.REQUIRED),
    ]
    return _Version(component, [*datasets, *packages], _model_card(record, datasets))


def _properties(prefix: str, values: Mapping[str, object]) -> list[Property]:
    return [
        Property(name=f"{prefix}:{name}", value=redact_credentials(str(value)))
        for name, value in values.items()
        if value is not None
    ]


def _packages(versions: Mapping[str, str], scope: ComponentScope) -> Iterator[Component]:
    """Yield the packages. A line that is not a requirement, such as an option of pip,
    is left out.
    """
    for text, version in versions.items():
        try:
            name = canonicalize_name(Requirement(text).name)
        except InvalidRequirement:
            continue
        number = version.partition(";")[0].strip() or None
        purl = PackageURL("pypi", name=name, version=number)
        yield Component(
            name=name,
            version=number,
            type=ComponentType.LIBRARY,
            bom_ref=purl.to_string(),
            purl=purl,
            scope=scope,
        )


def _model_card(record: VersionRecord, datasets: Sequence[Component]) -> Json:
    """Return the parameters and the figures as a model card of CycloneDX."""
    parameters: Json = {"datasets": [{"ref": data.bom_ref.value} for data in datasets]}
    for side in ("inputs", "outputs"):
        parameters[side] = [
            {"format": entry}
            for name, entry in record.signature.items()
            if name.startswith(f"{side} ")
        ]
    algorithm = record.provenance.get("algorithm", "")
    parameters["modelArchitecture"] = str(algorithm)
    metrics = [
        {"type": name, "value": f"{value:.6g}"} for name, value in record.run.metrics.items()
    ]
    return {
        "modelParameters": parameters,
        "quantitativeAnalysis": {"performanceMetrics": metrics},
    }
