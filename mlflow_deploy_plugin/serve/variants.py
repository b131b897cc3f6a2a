"""The variants of the served endpoints as immutable values, and the selection of the
variant that answers a request.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import cast

import numpy as np

from mlflow_deploy_plugin.core.spec.parts import CaptureSpec, StickySpec
from mlflow_deploy_plugin.serve.runtime.artifact import NO_REFUSALS, Artifact
from mlflow_deploy_plugin.serve.runtime.batcher import Batcher
from mlflow_deploy_plugin.serve.runtime.feeds import Array, Feeds, object_array, sent_arrays
from mlflow_deploy_plugin.serve.runtime.guard import Guard
from mlflow_deploy_plugin.serve.runtime.model import Predictor
from mlflow_deploy_plugin.serve.runtime.pyfunc_artifact import column_inputs
from mlflow_deploy_plugin.serve.runtime.schemas.keyed_schema import with_keys
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema
from mlflow_deploy_plugin.serve.runtime.schemas.sent_schema import sent_schema
from mlflow_deploy_plugin.serve.runtime.steps import Steps
from mlflow_deploy_plugin.serve.spool.captured_model import CapturedModel

OTHERS = ("other", "other", "other", "other")
"""The metric labels of all variants that are not named."""


@dataclass(frozen=True, eq=False)
class LoadedVersion:
    """A version in memory. With `eq=False`, two loads of the same version are not
    equal.

    Attributes:
        batcher: combines requests into batches; None if each request is run separately.
        is_deterministic: True if the graph always computes the same outputs from the
            same feeds.
        digest: the digest of the files that the load has compared (`WantedVariant`).
        python: the Python of a pyfunc's environment (`WantedVariant`).
    """

    model: str
    version: str
    folder: Path
    predictor: Predictor
    captured: CapturedModel
    batcher: Batcher | None = None
    is_deterministic: bool = False
    digest: str = ""
    python: str = ""

    @cached_property
    def identity(self) -> tuple[str, ...]:
        """The model, version, ids and file digests (or the folder), which are unique to
        this version.
        """
        artifact = self.predictor.artifact
        files = artifact.digests.values() or [str(self.folder)]
        return self.model, self.version, artifact.model_id, artifact.run_id, *files


@dataclass(frozen=True)
class _AroundModel:
    """A version with its steps, as the protocols see it: the columns that callers send,
    and the outputs that `after` returns. With `are_rows`, `after` returns records.
    """

    artifact: Artifact
    schema: Schema
    are_rows: bool = False

    def prediction(
        self, outputs: Mapping[str, Array], of_table: bool = False
    ) -> Array | dict[str, Array]:
        """Return the only output, all outputs by name, or a record per row."""
        if self.are_rows:
            columns = [array.tolist() for array in outputs.values()]
            rows = zip(*columns, strict=True)
            return object_array([dict(zip(outputs, row, strict=True)) for row in rows])
        if len(outputs) == 1:
            return next(iter(outputs.values()))
        return dict(outputs)


_NO_INPUT_EXAMPLE = (
    "the step `before` converts each request, and INPUT_EXAMPLE in its file does not describe it"
)
_MOST_ANSWERS = 64
"""The maximum number of kept sets of output names that `after` has returned."""


@dataclass(frozen=True)
class ServedVariant:
    """A variant that answers requests with a loaded version, which other variants may
    share.

    Attributes:
        shadows: the endpoint's shadows with another version; each receives a copy of
            every request.
        key: the input column whose value selects the answering variant; None without
            such a column.
        guard: finds the rows that are outside of the training rows; None if the
            endpoint or the version has no guard.
        has_others: True if the endpoint has other variants, so that responses contain
            the variant's name.
        steps: the steps of the endpoint; None without steps.
        is_named: False if the metrics count the variant as one of many others.
    """

    endpoint: str
    name: str
    weight: int
    shadow: bool
    loaded: LoadedVersion
    capture: CaptureSpec
    captured: CapturedModel
    aspects: Mapping[str, str] = field(default_factory=dict)
    shadows: "tuple[ServedVariant, ...]" = ()
    key: str | None = None
    guard: Guard | None = None
    has_others: bool = False
    steps: Steps | None = None
    is_named: bool = True

    @cached_property
    def schema(self) -> Schema:
        """The schema of the variant's model, extended by the columns of
        `capture.keys`.
        """
        return with_keys(self.loaded.predictor.schema, self.capture.keys)

    @cached_property
    def labels(self) -> tuple[str, str, str, str]:
        """The values of the metric labels `metric_files.OF_VARIANT`: endpoint, variant,
        model and version.
        """
        if not self.is_named:
            return OTHERS
        return self.endpoint, self.name, self.loaded.model, self.loaded.version

    @property
    def sent(self) -> "ServedVariant":
        """The variant with which protocols decode requests: the variant itself without
        steps.
        """
        # A cached reference to itself would keep a replaced version in memory.
        return self if self.steps is None else self._sent

    @cached_property
    def _sent(self) -> "ServedVariant":
        assert self.steps is not None
        described = self.described.predictor
        schema = self.schema
        if self.steps.before is not None:
            schema = sent_schema(described.schema if self.steps.columns else schema)
        # The version itself never decodes a body that steps read.
        artifact = replace(described.artifact, flavor="onnxserve")
        return self._around(_AroundModel(artifact, schema))

    @property
    def described(self) -> LoadedVersion:
        """The version as documents describe it to callers: with the columns that
        `before` accepts, and without outputs that only `after` knows.
        """
        steps = self.steps
        if steps is None:
            return self.loaded
        artifact = self.loaded.predictor.artifact
        schema = self.loaded.predictor.schema
        if steps.before is not None:
            schema = Schema(steps.columns, (), column_inputs(steps.columns))
            artifact = replace(
                artifact,
                columns=schema.columns,
                tensors=(),
                inputs=schema.inputs,
                refusals=NO_REFUSALS,
                categories={},
                undescribed="" if steps.columns else _NO_INPUT_EXAMPLE,
            )
        if steps.after is not None:
            artifact = replace(artifact, outputs=(), prediction=(), classes=())
        return replace(self.loaded, predictor=cast(Predictor, _AroundModel(artifact, schema)))

    def answering(self, outputs: tuple[str, ...], are_rows: bool) -> "ServedVariant":
        """Return the variant with which protocols encode these outputs of `after`."""
        key = outputs, are_rows
        variant = self._answering.get(key)
        if variant is None:
            if len(self._answering) >= _MOST_ANSWERS:
                self._answering.clear()
            artifact = replace(self._sent.loaded.predictor.artifact, prediction=outputs)
            variant = self._around(_AroundModel(artifact, self.schema, are_rows))
            self._answering[key] = variant
        return variant

    @cached_property
    def _answering(self) -> "dict[tuple[tuple[str, ...], bool], ServedVariant]":
        return {}

    def _around(self, model: _AroundModel) -> "ServedVariant":
        loaded = replace(self.loaded, predictor=cast(Predictor, model))
        # The schema of the model has the keys.
        capture = self.capture.model_copy(update={"keys": ()})
        return replace(self, loaded=loaded, capture=capture, steps=None)


@dataclass(frozen=True)
class ServedEndpoint:
    """The variants of an endpoint in memory, the answering variants, and the setting
    for sticky variants.
    """

    variants: Mapping[str, ServedVariant]
    answering: tuple[ServedVariant, ...]
    sticky: StickySpec | None = None

    def named(self) -> "ServedEndpoint":
        """Return this endpoint with variants that the metrics count by their names."""
        variants = {
            name: replace(variant, is_named=True) for name, variant in self.variants.items()
        }
        return make_served_endpoint(variants, self.sticky)

    @property
    def versions(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(variant.loaded.version for variant in self.variants.values()))


def make_served_endpoint(
    variants: Mapping[str, ServedVariant],
    sticky: StickySpec | None = None,
) -> ServedEndpoint:
    """Return the endpoint of these variants. Each variant receives a reference to the
    shadows with another version. `sticky` has no effect on a single answering variant.
    """
    shadows = [variant for variant in variants.values() if variant.shadow]
    if len(answering_variants(variants.values())) < 2:
        sticky = None
    linked_variants = dict(variants)
    if len(variants) > 1:
        key = sticky.key if sticky else None
        for name, variant in variants.items():
            others = tuple(shadow for shadow in shadows if shadow.loaded is not variant.loaded)
            linked_variants[name] = replace(variant, shadows=others, key=key, has_others=True)
    answering = answering_variants(linked_variants.values())
    return ServedEndpoint(linked_variants, answering, sticky)


ServedTable = Mapping[str, ServedEndpoint]
"""The endpoints by name; the first endpoint is the default."""


def answering_variants(variants: Iterable[ServedVariant]) -> tuple[ServedVariant, ...]:
    """Return the variants that may answer: their weight is positive, and they are not
    shadows.
    """
    return tuple(variant for variant in variants if variant.weight > 0 and not variant.shadow)


def weighted_variant(variants: Sequence[ServedVariant], draw: float) -> ServedVariant:
    """Return the variant whose share of the weights contains `draw`, a number in [0,
    1).
    """
    if len(variants) == 1:
        return variants[0]
    mark = draw * sum(variant.weight for variant in variants)
    for variant in variants:
        mark -= variant.weight
        if mark < 0:
            return variant
    return variants[-1]


def sticky_variant(variants: Sequence[ServedVariant], endpoint: str, key: str) -> ServedVariant:
    """Return the variant of `key`, the same in all workers and after a restart; weights
    set the shares of keys.

    Weighted rendezvous hashing: a hash of endpoint, variant and key gives an
    exponential number with the weight as its rate, and the smallest number wins. A
    variant whose weight grows only gains keys. No stateless method moves fewer keys
    (Bavarian et al., "The Optimality of Correlated Sampling", 2016).
    """
    if len(variants) == 1:
        return variants[0]

    def waiting_time(variant: ServedVariant) -> float:
        text = f"{endpoint}\0{variant.name}\0{key}".encode(errors="surrogatepass")
        # 53 bits, a float's precision
        number = int.from_bytes(sha256(text).digest()[:8]) >> 11
        return -math.log((number + 0.5) / 2**53) / variant.weight

    return min(variants, key=waiting_time)


def has_sticky_column(schema: Schema, column: str) -> bool:
    """Return True if the column, or a tensor of this name, is an input of the model."""
    return any(column in (entry.columns or (entry.name,)) for entry in schema.inputs)


def sticky_key(schema: Schema, feeds: Feeds, column: str) -> str | None:
    """Return the first row's value of a column (of a tensor, its first number) as text;
    None if the value is missing.

    Whole numbers and booleans have the same text in all types, so that clients keep
    their variant across versions.
    """
    arrays = sent_arrays(feeds)
    for entry in schema.sent_inputs:
        array = arrays.get(entry.name)
        if array is not None and array.size and column in (entry.columns or (entry.name,)):
            index = entry.columns.index(column) if entry.columns else 0
            rows = len(array) if array.ndim else 1
            value = array.reshape(rows, -1)[0, index]
            value = value.item() if isinstance(value, np.generic) else value
            if value is None or value != value or value == entry.missing:
                return None
            is_whole = isinstance(value, bool) or (isinstance(value, float) and value.is_integer())
            return str(int(value)) if is_whole else str(value)
    return None
