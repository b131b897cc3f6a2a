"""EndpointSpec: the one description of what is served and how.

An endpoint is a server; a deployment is a variant in it. One YAML document describes one endpoint:

    apiVersion: onnxserve/v1
    name: flights
    variants:
      flights: {model: "models:/flight-delay/Production", weight: 100}   # a stage or alias is followed
    server: {workers: 2, device: cpu, port: 8080}
    capture: {fraction: 1.0}
    monitors:
      daily: {kind: drift, every: 1d, min_rows: 200}

Field names, defaults, bounds and descriptions stand here once: `-C server.port=8123`, `onnxserve serve --help`,
`mlflow deployments help -t onnxserve` and the reference page of the docs are made from them.
"""

import difflib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from mlflow_deploy_plugin.errors import AlreadyExists, InvalidConfig

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Duration = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,5}[smhd]$")]
Rate = Annotated[
    str, StringConstraints(pattern=r"^[1-9][0-9]{0,8} *(/|per) *([1-9][0-9]{0,3} *)?(second|minute|hour|day)s?$")
]
HeaderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]{1,64}$", to_lower=True)]
BatchSize = Annotated[int, Field(ge=1, le=65536)]
Device = Literal["cpu", "cuda", "tensorrt"]
ModelControlMode = Literal["none", "explicit"]
WorkerClass = Literal["fast", "gthread"]

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def duration_seconds(duration: str) -> int:
    """`"90s"`, `"5m"`, `"1h"`, `"1d"` in seconds."""
    return int(duration[:-1]) * _SECONDS[duration[-1]]


def _listed(value: Any) -> Any:
    """`"8,32"`, as a command line says a list."""
    return value.split(",") if isinstance(value, str) else value


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class VariantSpec(_Part):
    """One model of an endpoint."""

    model: str = Field(
        min_length=1,
        description="Model URI: models:/X/Production, models:/X@alias, models:/X/tag:KEY=VALUE, models:/X/3, runs:/…, "
        "s3://…, a path.",
    )
    weight: int = Field(default=100, ge=0, le=100, description="Share of the endpoint's traffic, in parts of the sum.")
    shadow: bool = Field(
        default=False, description="Never answers; gets a copy of the traffic, to be compared with what was answered."
    )
    allow_pyfunc: bool = Field(
        default=False,
        description="Lets a stage, alias or tag move to a version without an ONNX form, which runs its own Python code.",
    )


class ServerSpec(_Part):
    """The server process of an endpoint."""

    host: str = Field(default="127.0.0.1", description="Address to listen on; 0.0.0.0 for every interface.")
    port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="Port to listen on. Default: the first free one from 8080 up.",
    )
    grpc_port: int | None = Field(
        default=None, ge=1, le=65535, description="Port for the Open Inference Protocol over gRPC. Default: no gRPC."
    )
    workers: int = Field(default=1, ge=1, le=256, description="Worker processes; each holds the models once.")
    threads: int = Field(default=4, ge=1, le=256, description="Requests that one worker handles at the same time.")
    worker_class: WorkerClass = Field(
        default="fast",
        description="What speaks HTTP: fast answers on an event loop, gthread is gunicorn's own, with Flask.",
    )
    certfile: str | None = Field(
        default=None, min_length=1, description="Certificate chain in PEM; with keyfile, the server speaks https only."
    )
    keyfile: str | None = Field(default=None, min_length=1, description="Private key of certfile in PEM.")
    device: Device = Field(default="cpu", description="Where ONNX Runtime runs; cuda and tensorrt refuse to fall back.")
    intra_op_num_threads: int | None = Field(
        default=None,
        ge=1,
        description="ONNX Runtime's threads per session. Default: the cores allowed, divided by the workers.",
    )
    max_worker_memory_bytes: int | None = Field(
        default=None,
        ge=64 * 1024 * 1024,
        description="Memory that one worker may take; a version that would pass it is refused, and the one before "
        "serves on. Default: its share of the container's memory, where that is limited.",
    )
    max_body_bytes: int = Field(
        default=16 * 1024 * 1024,
        ge=1024,
        description="Largest request body accepted; above it the answer is 413.",
    )
    request_timeout_seconds: int = Field(
        default=60,
        ge=1,
        le=3600,
        description="What a request may take to arrive; a worker that is silent this long is replaced.",
    )
    graceful_timeout_seconds: int = Field(
        default=30, ge=1, le=3600, description="What requests in flight may take to finish after SIGTERM."
    )
    model_control_mode: ModelControlMode = Field(
        default="none",
        description="explicit: whoever reaches the server may load and unload endpoints (V2 model repository).",
    )
    max_batch_size: int | None = Field(
        default=None,
        ge=1,
        le=65536,
        description="Rows that requests are joined to at most; 1: never. Default: 1 on a CPU, 32 on a GPU.",
    )
    preferred_batch_size: Annotated[tuple[BatchSize, ...], BeforeValidator(_listed)] = Field(
        default=(),
        max_length=16,
        description="Sizes of a batch that are computed at once, without waiting for more rows: 8,32.",
    )
    max_queue_delay_microseconds: int = Field(
        default=500, ge=0, le=10_000_000, description="What a request may wait for others to be joined with."
    )
    max_queue_size: int = Field(
        default=1024, ge=1, le=1_000_000, description="Requests that wait for a batch of one version; above it: 429."
    )
    default_timeout_microseconds: int = Field(
        default=0,
        ge=0,
        description="A request that is not being computed after this time is answered with 504; 0: never. "
        "A request may ask for less (parameter `timeout`).",
    )
    max_concurrent_requests: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="Requests for predictions in flight in one worker; above it: 429. "
        "The gthread worker never has more than `threads`.",
    )
    rate_limit: Rate | None = Field(
        default=None,
        description="Requests for predictions by one caller, as 100/minute: 429 above it. Counted by each worker, "
        "or by all together where ONNXSERVE_REDIS_URL is set.",
    )
    rate_limit_header: HeaderName | None = Field(
        default=None, description="Header that names the caller for the rate limit. Default: the client's address."
    )
    response_cache_bytes: int = Field(
        default=0, ge=0, description="Memory for answers that are given again to the same question; 0: none are kept."
    )
    explain_max_rows: int = Field(
        default=100,
        ge=0,
        le=10_000,
        description="Rows of one request that are explained (POST /explain); 0: none are, ever.",
    )
    max_spool_bytes: int = Field(
        default=1024**3,
        ge=1024**2,
        description="What captured requests may take on this disk while the inference log is down; those above it are "
        "answered and not captured.",
    )
    response_cache_seconds: int = Field(default=300, ge=1, le=86400, description="How long such an answer is kept.")

    @model_validator(mode="after")
    def _go_together(self) -> "ServerSpec":
        if (self.certfile is None) != (self.keyfile is None):
            raise ValueError("certfile and keyfile belong together: say both, or neither")
        if self.grpc_port is not None and self.grpc_port == self.port:
            raise ValueError(f"port and grpc_port are both {self.port}; each needs its own")
        return self


class CaptureSpec(_Part):
    """What is kept of the traffic for monitoring."""

    fraction: float = Field(default=1.0, ge=0, le=1, description="Share of the requests that are captured.")
    max_rows_per_request: int = Field(default=10_000, ge=1, description="Rows kept of one request.")


class MonitorSpec(_Part):
    """A judgement that is made of the captured traffic again and again."""

    kind: Literal["drift"] = Field(default="drift", description="What is judged.")
    every: Duration = Field(default="1d", description="Length of a window in event time: 30m, 1h, 1d.")
    reference: Literal["training"] = Field(default="training", description="What the window is compared with.")
    min_rows: int = Field(default=200, ge=1, description="Fewer rows in a window are not judged.")
    false_alarm_rate: float = Field(
        default=0.05,
        gt=0,
        lt=1,
        description="Share of windows like the reference that may be called drifted.",
    )


class StickySpec(_Part):
    """What makes a caller's requests go to one variant, whichever worker they come to."""

    header: HeaderName | None = Field(
        default=None, description="Header (over gRPC: metadata) whose value keeps to one variant: X-User-Id."
    )
    key: str | None = Field(
        default=None, min_length=1, description="Input column whose value in the first row keeps to one variant."
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> "StickySpec":
        if (self.header is None) == (self.key is None):
            raise ValueError("sticky takes exactly one of header and key")
        return self


class EndpointSpec(_Part):
    """One endpoint: its variants, its server, what is captured and what watches it."""

    api_version: Literal["onnxserve/v1"] = Field(default="onnxserve/v1", alias="apiVersion")
    name: Name
    variants: dict[Name, VariantSpec]
    server: ServerSpec = ServerSpec()
    capture: CaptureSpec = CaptureSpec()
    monitors: dict[Name, MonitorSpec] = Field(default_factory=dict)
    sticky: StickySpec | None = None
    require: Literal["gate=passed"] | None = Field(
        default=None, description="gate=passed: a version that has not passed its model's gate is not served."
    )

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @model_validator(mode="after")
    def _some_variant_answers(self) -> "EndpointSpec":
        answering = [variant for variant in self.variants.values() if variant.weight > 0 and not variant.shadow]
        if self.variants and not answering:
            raise ValueError("no variant answers: one needs a weight above 0 and shadow: false")
        return self


def new_endpoint(
    name: str, model_uri: str, config: Mapping[str, Any] | None = None, variant: str | None = None
) -> EndpointSpec:
    """The endpoint `name` with one variant (of the same name, if not said otherwise) at 100 %, changed by `config`
    (dotted field names).

    Raises:
        InvalidConfig: the name, or a field of `config`, is unknown or has a value it cannot have.
    """
    document = {"name": name, "variants": {variant or name: {"model": model_uri}}}
    return apply_config(_validated(document), config or {})


def empty_endpoint(name: str, config: Mapping[str, Any]) -> EndpointSpec:
    """The endpoint `name` without a variant, which cannot be served before it has one. Raises as `new_endpoint`."""
    return apply_config(_validated({"name": name, "variants": {}}), config)


def apply_config(spec: EndpointSpec, config: Mapping[str, Any]) -> EndpointSpec:
    """`spec` with fields replaced by their dotted names: `{"server.port": "8123"}`.

    An empty text brings a field's default back.

    Raises:
        InvalidConfig: a name is unknown (the nearest valid one is named) or a value does not fit its field.
    """
    document = _document(spec)
    if any(dotted.startswith("sticky.") for dotted in config):
        document.pop("sticky", None)  # header and key replace each other
    for dotted, value in config.items():
        _check_name(spec, dotted)
        *parents, leaf = _path(dotted)
        target = document
        for parent in parents:
            target = target.setdefault(parent, {})
        target[leaf] = value
        if value == "":
            del target[leaf]
    for part in [part for part, fields in document.items() if fields == {} and part != "variants"]:
        del document[part]
    return _validated(document)


def add_variant(spec: EndpointSpec, name: str, model_uri: str, config: Mapping[str, Any] | None = None) -> EndpointSpec:
    """`spec` with a further variant, changed by `config` (dotted field names). It gets no traffic yet if others do.

    Raises:
        AlreadyExists: there is a variant of this name.
        InvalidConfig: as `new_endpoint`.
    """
    if name in spec.variants:
        raise AlreadyExists(f"the endpoint {spec.name!r} has a deployment {name!r} already: update or delete it")
    added = {"model": model_uri, "weight": 0 if spec.variants else 100}
    variants = {**_document(spec)["variants"], name: added}
    return apply_config(_validated({**_document(spec), "variants": variants}), config or {})


def remove_variant(spec: EndpointSpec, name: str) -> EndpointSpec:
    """`spec` without one of its variants.

    Raises:
        InvalidConfig: none of those that stay would answer. None may stay at all.
    """
    variants = {key: variant for key, variant in _document(spec)["variants"].items() if key != name}
    return _validated({**_document(spec), "variants": variants})


def load_specs(text: str, may_be_empty: bool = False) -> list[EndpointSpec]:
    """The endpoints of a YAML text, one a document; they share one server, which the first describes.

    Args:
        may_be_empty: an endpoint without a variant is one too; it can be kept, not served.

    Raises:
        InvalidConfig: not YAML, not a spec, a name that stands twice, or a server that differs from the first's.
    """
    try:
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # of a date that is none, of too many brackets
        raise InvalidConfig(f"the spec is not valid YAML: {' '.join(str(error).split())}") from None
    specs = [_validated(document) for document in documents]
    if not specs:
        raise InvalidConfig("the spec is empty: it needs at least `name` and `variants`")
    names = [spec.name for spec in specs]
    if not may_be_empty and (empty := [spec.name for spec in specs if not spec.variants]):
        raise InvalidConfig(f"variants: endpoint {empty[0]!r} has none; it needs at least one, with a `model`")
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidConfig(f"endpoint {doubled[0]!r} stands twice in the spec")
    for spec in specs[1:]:
        if "server" in spec.model_fields_set and spec.server != specs[0].server:
            raise InvalidConfig(
                f"endpoint {spec.name!r} has a `server` of its own, and all of a spec share one: say it in the first, "
                f"{specs[0].name!r}"
            )
    return specs


def dump_spec(spec: EndpointSpec) -> str:
    """The spec as YAML, defaults left out; `load_specs` reads it back."""
    document = {"apiVersion": spec.api_version, **_document(spec)}
    return yaml.safe_dump(document, sort_keys=False)


def field_reference() -> Iterator[tuple[str, str, str, str]]:
    """Every field that `-C` takes: (dotted name, type, default, description)."""
    parts: list[tuple[str, type[BaseModel]]] = [
        ("server.", ServerSpec),
        ("capture.", CaptureSpec),
        ("variants.NAME.", VariantSpec),
        ("monitors.NAME.", MonitorSpec),
        ("sticky.", StickySpec),
    ]
    for prefix, part in parts:
        for name, field in part.model_fields.items():
            if (prefix, name) == ("variants.NAME.", "model"):
                continue  # -m says it
            default = "" if field.default is None else str(field.default)
            yield prefix + name, _type_name(field.annotation), default, field.description or ""
    require = EndpointSpec.model_fields["require"]
    yield "require", _type_name(require.annotation), "", require.description or ""


def _document(spec: EndpointSpec) -> dict[str, Any]:
    return spec.model_dump(by_alias=True, exclude_defaults=True)


def _type_name(annotation: Any) -> str:
    """How a field's type is called in help texts: `int`, or the values it takes."""
    kinds = [kind for kind in get_args(annotation) if kind not in (type(None), Ellipsis)] or [annotation]
    if get_origin(kinds[0]) is Literal:
        kinds = list(get_args(kinds[0]))
    elif get_origin(kinds[0]) is Annotated:
        kinds = [get_args(kinds[0])[0]]
    return " | ".join(getattr(kind, "__name__", None) or str(kind) for kind in kinds)


def _path(dotted: str) -> list[str]:
    """The keys that a dotted name leads through; the names of variants and monitors may have dots themselves."""
    part, _, rest = dotted.partition(".")
    name, _, field = rest.rpartition(".")
    return [part, name, field] if part in ("variants", "monitors") and name else dotted.split(".")


def _check_name(spec: EndpointSpec, dotted: str) -> None:
    known = [name for name, *_ in field_reference()]
    parts = _path(dotted)
    generic = ".".join([parts[0], "NAME", *parts[2:]]) if parts[0] in ("variants", "monitors") else dotted
    if generic in known or (generic == "variants.NAME.model" and parts[1] in spec.variants):
        return
    nearest = difflib.get_close_matches(generic, known, n=1, cutoff=0.4)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else f"; known are {', '.join(known)}"
    raise InvalidConfig(f"unknown config key {dotted!r}{hint}")


def _validated(document: Any) -> EndpointSpec:
    if not isinstance(document, Mapping):
        raise InvalidConfig(f"a spec is a mapping with `name` and `variants`, not {type(document).__name__}")
    try:
        return EndpointSpec.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = [name for name, *_ in field_reference()] + list(EndpointSpec.model_fields)
            nearest = difflib.get_close_matches(where, known, n=1, cutoff=0.4)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise InvalidConfig(f"unknown field {where!r}{hint}") from None
        message = first["msg"].removeprefix("Value error, ")
        raise InvalidConfig(f"{where}: {message} (got {first['input']!r})" if where else message) from None
