"""The parts of a spec: their fields, defaults, bounds and descriptions."""

import re
from collections.abc import Mapping
from datetime import timedelta
from itertools import chain, combinations
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    StringConstraints,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound
from mlflow_deploy_plugin.core.spec.monitors import Length, MonitorSpec
from mlflow_deploy_plugin.core.spec.steps import STEPS_FILE, check_steps, steps_digest
from mlflow_deploy_plugin.core.spec.types import (
    BUCKET_URI,
    DNS_NAME,
    HTTP_URL,
    IMAGE,
    NETWORK,
    NODE_LABEL,
    PROVIDER,
    REQUIREMENTS,
    SECRET_KEY,
    SINK_URL,
    SINK_VARIABLE,
    SOURCE_VARIABLE,
    TAINT,
    VARIABLE,
    VARIABLE_VALUE,
    Count,
    Duration,
    ListOf,
    Memory,
    Name,
    NonEmpty,
    Port,
    Share,
    SpecPart,
    check_time,
    length_of,
    memory_bytes,
    split_providers,
)

RATE = r"^[1-9][0-9]{0,8} *(/|per) *([1-9][0-9]{0,3} *)?(second|minute|hour|day)s?$"
Rate = Annotated[str, StringConstraints(pattern=RATE)]
HeaderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]{1,64}$", to_lower=True)]
HostName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9.-]{1,253}$", to_lower=True)]
VariableName = Annotated[str, StringConstraints(pattern=VARIABLE)]
VariableValue = Annotated[str, StringConstraints(pattern=VARIABLE_VALUE)]
DnsName = Annotated[str, StringConstraints(pattern=DNS_NAME)]
NodeLabels = ListOf[Annotated[str, StringConstraints(pattern=NODE_LABEL)]]
Taint = Annotated[str, StringConstraints(pattern=TAINT)]
BatchSize = Annotated[int, Field(ge=1, le=65536)]
Device = Literal["cpu", "cuda"]
ProviderName = Annotated[str, StringConstraints(pattern=PROVIDER)]
Provider = Annotated[
    dict[ProviderName, dict[str, str | bool | int | float]],
    WithJsonSchema(
        {"type": ["string", "object"], "pattern": PROVIDER, "minProperties": 1, "maxProperties": 1},
    ),
]
GATE_PASSED = "gate=passed"
_OF_NVIDIA = {"cuda", "CUDAExecutionProvider", "TensorrtExecutionProvider"}
ModelControlMode = Literal["none", "explicit"]
V2Naming = Literal["onnxserve", "mlserver"]
PyfuncEnv = Literal["local", "uv"]
ConvertRule = Literal["never", "example", "always"]
WorkerClass = Literal["fast", "gthread"]
_SHIP_SECONDS = 40
_PROCESS_BYTES = 256 * 1024 * 1024
"""The memory of a process of the server, without models."""


class VariantSpec(SpecPart):
    """A model of an endpoint."""

    model: NonEmpty
    """Model URI: models:/X@alias, models:/X/Production, models:/X/tag:KEY=VALUE,
    models:/X/3, runs:/…, s3://… or a path.
    """
    weight: int = Field(default=100, ge=0, le=100)
    """Weight of the variant. Its share of the traffic is its weight divided by the sum
    of all weights.
    """
    shadow: bool = False
    """true: the variant receives a copy of the traffic, but its predictions are only
    compared and never returned.
    """
    allow_pyfunc: bool = False
    """Allow a stage, alias or tag to move to a version without an ONNX form, which runs
    its own Python code.
    """
    convert: ConvertRule = "example"
    """Convert a version without an ONNX form when it is loaded: if it has an input
    example, also on made rows, or never. The original answers until the form is proven.
    """


class ProviderOptions(SpecPart):
    """Options of ONNX Runtime's GPU providers, by ONNX Runtime's names. Unset options
    have ONNX Runtime's defaults.
    """

    gpu_mem_limit: int | None = Field(default=None, ge=1024**2)
    """Maximum bytes of GPU memory in the arena of a session."""
    arena_extend_strategy: Literal["kNextPowerOfTwo", "kSameAsRequested"] | None = None
    """Growth of the arena: by powers of two, or by the requested size."""
    cudnn_conv_algo_search: Literal["EXHAUSTIVE", "HEURISTIC", "DEFAULT"] | None = None
    """Selection of cuDNN's convolution algorithm. EXHAUSTIVE tries all algorithms for
    each shape.
    """
    use_tf32: bool | None = None
    """false: multiply in full float32, for which parity was proven. ONNX Runtime's
    default is true.
    """
    enable_cuda_graph: bool = False
    """Replay captured CUDA graphs for the batch sizes of the warm-up. Runs are then
    sequential.
    """


class JobsSpec(SpecPart):
    """The batch jobs that callers may start."""

    max_jobs: int = Field(default=8, ge=0, le=1000)
    """Maximum number of jobs that wait or run. Above the limit, the response is 429. 0
    disables jobs.
    """
    key_share: Share = 0.5
    """Share of max_jobs that one caller with a key may take."""
    workers: Count = 1
    """Number of cores that a job uses, at a low priority. One job runs at a time."""
    max_upload_bytes: int = Field(default=256 * 1024 * 1024, ge=1024)
    """Maximum size of an uploaded file."""
    max_rows: Count = 20_000_000
    """Maximum number of rows of a job."""
    max_file_bytes: int = Field(default=2 * 1024**3, ge=1024**2)
    """Maximum size of a file that a job writes, or of a decompressed input."""
    max_memory: Memory = "8GiB"
    """Maximum memory of each process of a job."""
    timeout: Duration = "1h"
    """Time after which a running job fails."""
    uris: ListOf[Annotated[str, StringConstraints(pattern=BUCKET_URI)]] = Field(
        default=(), max_length=64
    )
    """Addresses below which jobs may read and write with the server's credentials:
    s3://lake/in/,s3://lake/out/. Default: jobs have only uploads.
    """
    keep: Duration = "1d"
    """Time after which an ended job and its predictions are deleted."""
    max_kept_bytes: int = Field(default=4 * 1024**3, ge=1024**2)
    """Disk space for the predictions of ended jobs. The oldest are deleted first."""


class ServerSpec(SpecPart):
    """The server process of an endpoint."""

    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0 listens on every interface."""
    port: Port | None = None
    """Port to listen on. Default: the first free port from 8080."""
    api_keys: bool = False
    """Require an API key (onnxserve keys create) for every request except health
    checks.
    """
    jwt_issuer: str | None = Field(default=None, pattern=HTTP_URL)
    """OpenID Connect issuer whose tokens are accepted instead of a key. Requires
    jwt_audience.
    """
    jwt_audience: NonEmpty | None = None
    """Name of this server in the claim aud of the issuer's tokens."""
    insecure: bool = False
    """Allow a server without authentication to accept other machines, e.g. behind a
    gateway that authenticates.
    """
    grpc_port: Port | None = None
    """Port for the Open Inference Protocol over gRPC. Default: no gRPC."""
    metrics_port: Port | None = None
    """Port for GET /metrics over plain HTTP without authentication, in addition to
    /metrics on port. Default: none.
    """
    workers: int = Field(default=1, ge=1, le=256)
    """Number of worker processes. Each worker loads every model."""
    threads: int = Field(default=4, ge=1, le=256)
    """Number of requests that a worker handles in parallel."""
    pyfunc_env: PyfuncEnv = "local"
    """Python environment of a version without an ONNX form: local uses the server's
    own; uv builds one from the version's python_env.yaml and requirements.txt.
    """
    worker_class: WorkerClass = "fast"
    """Class of the HTTP workers: fast uses an event loop; gthread is gunicorn's own
    class, for debugging.
    """
    certfile: NonEmpty | None = None
    """Certificate chain in PEM format. With keyfile, the server accepts only https. On
    kubernetes, each file is SECRET/KEY: flights-tls/tls.crt.
    """
    keyfile: NonEmpty | None = None
    """Private key of certfile in PEM format."""
    ca_certs: NonEmpty | None = None
    """Certificate authorities in PEM format. Callers need a client certificate from one
    of these authorities (mutual TLS). Requires certfile.
    """
    device: Device = "cpu"
    """Device of ONNX Runtime. cuda does not fall back to another device."""
    providers: Annotated[tuple[Provider, ...], BeforeValidator(split_providers)] = Field(
        default=(),
        max_length=8,
    )
    """Providers of ONNX Runtime in order of preference, instead of device:
    CUDAExecutionProvider,CPUExecutionProvider. All except CPUExecutionProvider must
    compute a part of every model.
    """
    device_ids: ListOf[Annotated[int, Field(ge=0, le=1023)]] = Field(default=(), max_length=64)
    """GPUs to distribute the workers over: 0,1. Default: all workers use GPU 0."""
    provider_options: ProviderOptions = ProviderOptions()
    intra_op_num_threads: Count | None = None
    """Number of threads per session of ONNX Runtime, and of the libraries of a pyfunc.
    Default: the available cores divided by the workers.
    """
    max_worker_memory_bytes: int | None = Field(default=None, ge=64 * 1024 * 1024)
    """Memory limit of a worker. A version or a request that would exceed it is refused.
    Default: the worker's share of its container's or unit's limit.
    """
    model_memory: Memory | None = None
    """Memory of the loaded models of a server of all registered models, e.g. 4GiB. Each
    worker has an equal share. The least recently used models leave. Default: no limit.
    """
    model_disk: Memory | None = None
    """Disk space of the models of a server of all registered models, e.g. 20GiB. The
    files of models that left the memory are deleted. Default: no limit.
    """
    max_body_bytes: int = Field(default=16 * 1024 * 1024, ge=1024)
    """Maximum size of a request body, and (at least 16777216) of the values of a
    response. Above the limit, the response is 413.
    """
    max_text_characters: int = Field(default=1_000_000, ge=1000)
    """Maximum number of characters that a text model tokenizes per request, without a
    truncated end. Above the limit, the response is 413.
    """
    request_timeout_seconds: int = Field(default=60, ge=1, le=3600)
    """Timeout to receive a request, and of a pyfunc's prediction. A worker that is
    silent for this time is replaced.
    """
    graceful_timeout_seconds: int = Field(default=30, ge=1, le=3600)
    """Timeout of the requests in flight after SIGTERM."""
    v2_names: V2Naming = "onnxserve"
    """Names in the answers of V2 and V1. mlserver: the names, shapes, versions and
    headers of MLServer and of KServe's servers.
    """
    model_control_mode: ModelControlMode = "none"
    """explicit: all callers may load and unload endpoints (V2 model repository), except
    web pages of other origins.
    """
    allowed_hosts: ListOf[HostName] = Field(default=(), max_length=64)
    """Host names that callers may use for the routes that load and unload:
    flights.svc,models.example. IP addresses, localhost and `host` are always allowed.
    """
    max_batch_size: int | None = Field(default=None, ge=1, le=65536)
    """Maximum number of rows in a batch of several requests; 1 disables batching.
    Default: 1 on a CPU, 32 on a GPU.
    """
    preferred_batch_size: ListOf[BatchSize] = Field(default=(), max_length=16)
    """Batch sizes that are computed immediately, without waiting for more rows: 8,32.
    """
    max_queue_delay_microseconds: int = Field(default=500, ge=0, le=10_000_000)
    """Maximum time that a request waits for other requests of its batch."""
    max_queue_size: int = Field(default=1024, ge=1, le=1_000_000)
    """Maximum number of requests that wait for a batch of a version. Above the limit,
    the response is 429.
    """
    default_timeout_microseconds: NonNegativeInt = 0
    """Timeout until the computation of a request starts (0: none). After it, the
    response is 504. The parameter `timeout` of a request shortens it.
    """
    max_concurrent_requests: int | None = Field(default=None, ge=1, le=1000)
    """Maximum number of predict requests in flight per worker. Above the limit, the
    response is 429. A gthread worker has at most `threads` requests.
    """
    rate_limit: Rate | None = None
    """Rate limit of predict requests per caller, e.g. 100/minute. Above the limit, the
    response is 429. Each worker counts separately, unless ONNXSERVE_REDIS_URL is set.
    """
    rate_limit_header: HeaderName | None = None
    """Header that identifies the caller for the rate limit. Default: the IP address, or
    the /64 of an IPv6 address.
    """
    response_cache_bytes: NonNegativeInt = 0
    """Memory of the cache of responses to equal requests; 0 disables the cache."""
    explain_max_rows: int = Field(default=100, ge=0, le=10_000)
    """Maximum number of rows in an explain request (POST /explain); 0 disables
    explanations.
    """
    max_spool_bytes: int = Field(default=1024**3, ge=1024**2)
    """Disk space for captured requests while the inference log or a sink is down. When
    it is full, requests are answered but not captured, or not sent to the sink.
    """
    response_cache_seconds: int = Field(default=300, ge=1, le=86400)
    """Time that a response stays in the cache."""
    jobs: JobsSpec = JobsSpec()

    @property
    def scheme(self) -> Literal["http", "https"]:
        return "http" if self.certfile is None else "https"

    @property
    def stop_seconds(self) -> int:
        """The timeout for stopping the server: for the requests in flight, and for the
        agent to ship captured rows.
        """
        return self.graceful_timeout_seconds + _SHIP_SECONDS

    @property
    def is_open(self) -> bool:
        """True if the server accepts unauthenticated callers without `insecure`."""
        return not (self.authenticates or self.insecure)

    @property
    def authenticates(self) -> bool:
        """True if callers need a key, a token or a certificate."""
        return self.takes_keys or self.ca_certs is not None

    @property
    def takes_keys(self) -> bool:
        """True if callers need a key or a token."""
        return self.api_keys or self.jwt_issuer is not None

    @model_validator(mode="after")
    def _go_together(self) -> "ServerSpec":
        """Raise ValueError if a field needs another field, or two ports are equal."""
        if (self.certfile is None) != (self.keyfile is None):
            raise ValueError("certfile and keyfile must be set together")
        if self.ca_certs is not None and self.certfile is None:
            raise ValueError("ca_certs requires certfile and keyfile")
        if (self.jwt_issuer is None) != (self.jwt_audience is None):
            raise ValueError("jwt_issuer and jwt_audience must be set together")
        for first, other in combinations(("port", "grpc_port", "metrics_port"), 2):
            port = getattr(self, first)
            if port is not None and port == getattr(self, other):
                raise ValueError(f"{first} and {other} are both {port}; they must differ")
        return self

    @property
    def is_on_nvidia(self) -> bool:
        """True if the server computes on an NVIDIA GPU."""
        return not _OF_NVIDIA.isdisjoint(chain([self.device], *self.providers))

    @model_validator(mode="after")
    def _fit_the_device(self) -> "ServerSpec":
        """Raise ValueError if the fields of a GPU do not fit the device, the providers
        or the workers.
        """
        fields = [
            f"provider_options.{name}"
            for name in self.provider_options.model_dump(exclude_defaults=True)
        ]
        if self.device_ids:
            fields.append("device_ids")
        contradicting = fields if self.device == "cpu" else ["device", *fields]
        if self.providers and contradicting:
            raise ValueError(
                f"{contradicting[0]} and providers are both set: providers replaces device, with "
                "all options",
            )
        single = [entry for entry in self.providers if len(entry) == 1]
        if len(set(chain.from_iterable(single))) < len(self.providers):
            raise ValueError(
                "each entry of providers is a single provider, which no other entry repeats",
            )
        if self.device == "cpu" and fields:
            raise ValueError(
                f"{fields[0]} requires a GPU, but device is cpu: device cuda is expected",
            )
        if self.device_ids and (
            len(set(self.device_ids)) < len(self.device_ids) or self.workers < len(self.device_ids)
        ):
            raise ValueError(
                f"device_ids {', '.join(map(str, self.device_ids))} with {self.workers} workers: "
                "different GPUs and at least one worker for each GPU are expected",
            )
        return self


class ContainerSpec(SpecPart):
    """The container of an endpoint's server, for every target that runs an image."""

    image: str | None = Field(default=None, pattern=IMAGE)
    """Image of the server, built from docker/Dockerfile or by `onnxserve build-docker`.
    Default: onnxserve:cpu, or onnxserve:gpu for an NVIDIA GPU.
    """
    cpus: float | None = Field(default=None, ge=0.01, le=1024)
    """CPU limit of the container: 1.5. Default: no limit."""
    memory_bytes: int | None = Field(default=None, ge=64 * 1024 * 1024)
    """Memory limit of the container. The kernel kills a process that exceeds it.
    Default: no limit.
    """
    environment: dict[VariableName, VariableValue] = Field(default={})
    """Environment variable of the server. Its value is in the spec."""
    secrets: dict[VariableName, str] = Field(default={})
    """Environment variable whose value is not in the spec. On docker, the path of a
    file with the value; on kubernetes, SECRET/KEY in the namespace.
    """
    secret_files: dict[VariableName, str] = Field(default={})
    """Environment variable with the path of a mounted file, e.g.
    GOOGLE_APPLICATION_CREDENTIALS. On docker, the path of the file; on kubernetes,
    SECRET/KEY in the namespace.
    """
    restart: Literal["unless-stopped", "on-failure", "no"] = "unless-stopped"
    """Docker's restart policy. Kubernetes always restarts."""
    pids: int = Field(default=1024, ge=32, le=65536)
    """Docker's limit of processes and threads in the container."""
    network: str | None = Field(default=None, pattern=NETWORK)
    """Docker network on which containers reach each other by name; host: this machine's
    network. Default: a network on which only this machine reaches the server.
    """

    @model_validator(mode="after")
    def _each_once(self) -> "ContainerSpec":
        if both := sorted(self.secrets.keys() & self.secret_files.keys()):
            raise ValueError(f"{both[0]} is in secrets and in secret_files: specify it only once")
        return self

    def image_for(self, server: ServerSpec) -> str:
        """Return the image of the server. Raise InvalidConfig if none of our images has
        the server's providers.
        """
        if self.image or server.is_on_nvidia:
            return self.image or "onnxserve:gpu"
        if not server.providers:
            return "onnxserve:cpu"
        raise InvalidConfig(
            "server.providers needs an image with its build of ONNX Runtime: -C container.image=…",
        )


_RESERVED = ("_", "output.")
"""The prefixes of column names that the inference log reserves."""


class SinkSpec(SpecPart):
    """Another system that receives the captured requests."""

    url: str = Field(pattern=SINK_URL)
    """Address to which events are sent. It is shown with the spec and must not contain
    a secret.
    """
    authorization: str | None = Field(default=None, pattern=SINK_VARIABLE)
    """Environment variable of the server that contains the header Authorization:
    ONNXSERVE_SINK_AUDIT.
    """
    batch: int = Field(default=100, ge=1, le=1000)
    """Maximum number of events per POST. 1: single events in CloudEvents' binary mode.
    """
    kserve: bool = False
    """true: like KServe's payload logger, post a single event for the request and
    another one for its answer.
    """

    @property
    def batch_size(self) -> int:
        """The maximum number of events per POST; 1 also for KServe's receivers."""
        return 1 if self.kserve else self.batch


class CaptureSpec(SpecPart):
    """The part of the traffic that is captured for monitoring."""

    fraction: Share = 1.0
    """Share of the requests to capture."""
    max_rows_per_request: Count = 10_000
    """Maximum number of captured rows per request."""
    drop: ListOf[str] = ()
    """Columns that are not captured: names of the signature, prediction, output.NAME.
    """
    mask: ListOf[str] = ()
    """Columns that are captured as keyed hashes; equal values have equal hashes. The
    key is a file in the server's state folder.
    """
    keys: ListOf[str] = ()
    """Additional columns of requests, such as customer_id. They are captured to match
    labels with rows, and are not passed to the model.
    """
    retention: Length | None = None
    """Maximum age of rows and labels in the log: 90d. The controller deletes older
    ones, except those that a monitor still needs. Default: no limit.
    """
    sinks: dict[Name, SinkSpec] = Field(default={})
    """Other systems that receive the captured requests, by name."""

    @model_validator(mode="after")
    def _each_once(self) -> "CaptureSpec":
        """Raise ValueError if a column is in drop and in mask, or the log reserves the
        name of a key column.
        """
        if both := sorted({*self.drop} & {*self.mask}):
            raise ValueError(f"{both[0]!r} is in drop and in mask: specify it only once")
        for name in self.keys:
            if name == "prediction" or name.startswith(_RESERVED):
                raise ValueError(
                    f"keys contains {name!r}, which the log reserves: a name other than "
                    "prediction is expected, without the prefix _ or output.",
                )
        return self


PUSH = "push:"
"""The source of events that are posted to MLflow's server."""
_PASSWORD = re.compile(r"(?i)://[^:/]*:[^@]*@|[?&].*(password|passwd|pwd|secret|token)")


class ObserveSpec(SpecPart):
    """The source of the rows of an endpoint whose model another server serves."""

    source: str = Field(pattern=r"^[!-~]+$")
    """Folder or s3://BUCKET/PREFIX of files, delta:FOLDER of a Delta table, the address
    of a database (postgresql://reader@db/shop), or push: for events that are posted to
    MLflow's server.
    """
    format: Name = "columns"
    """columns: a row of the source is a row of the log. Otherwise the log of another
    server: sagemaker, databricks or kserve.
    """
    id: NonEmpty | None = None
    """Column that identifies a row, to which labels refer. Default, for files: the name
    of the file and the number of the row.
    """
    time: NonEmpty | None = None
    """Column with the event time: a time, a text such as 2025-11-01T12:00:00Z, or
    seconds, milliseconds or microseconds since 1970.
    """
    prediction: NonEmpty | None = None
    """Column with the prediction. The columns without a role are inputs."""
    version: NonEmpty | None = None
    """Column with the version that answered. Default: the version of the endpoint's
    model when the row is read.
    """
    query: NonEmpty | None = None
    """Table of the database, or a SELECT statement."""
    position: NonEmpty | None = None
    """Column of the query that grows, by which new rows are found. Default: the column
    of the time.
    """
    password: str | None = Field(default=None, pattern=SOURCE_VARIABLE)
    """Environment variable of the controller with the password of the database:
    ONNXSERVE_SOURCE_SHOP.
    """
    since: Annotated[str, AfterValidator(check_time)] | None = None
    """Event time from which rows are read: 2025-11-01. Default: all rows."""
    every: Length = "5m"
    """Time between two readings by the controller."""

    @property
    def is_database(self) -> bool:
        return "://" in self.source and not self.source.startswith(("s3:", "file:", "delta:"))

    @model_validator(mode="after")
    def _fit_the_source(self) -> "ObserveSpec":
        """Raise ValueError if the fields do not fit the source, or the source contains
        a password.
        """
        if _PASSWORD.search(self.source):
            raise ValueError(
                "the address contains a password: set it in an environment variable, which "
                "`password` names"
            )
        if self.is_database != (self.query is not None):
            raise ValueError("a database, and only a database, needs `query`: a table or a SELECT")
        if self.format == "columns":
            if self.source == PUSH:
                raise ValueError("format is missing: that of the pushed bodies, such as kserve")
            roles = {"time": self.time, "prediction": self.prediction}
            # Files of a Delta table are rewritten, and rows of a query have no place.
            if self.is_database or self.source.startswith("delta:"):
                roles["id"] = self.id
            if None in roles.values():
                raise ValueError(f"the names of these columns are needed: {', '.join(roles)}")
        return self


class ServeSpec(SpecPart):
    """Your own code around the versions of an endpoint (docs/steps.md)."""

    steps: Annotated[str, AfterValidator(check_steps)] | None = None
    """Path of a Python file with the functions before(request) and after(outputs,
    request), or one of them. The spec then contains the source of the file.
    """

    file: str = Field(default=STEPS_FILE, pattern=r"^[^/\x00-\x1f\x7f]{1,255}$")
    """The name of the file of the steps in messages."""
    signature: str | None = Field(default=None, max_length=65536)
    """The signature of the steps, which is read from the file FILE.sig."""

    @property
    def digest(self) -> str:
        """The SHA-256 of the steps in hexadecimal; empty without steps."""
        return steps_digest(self.steps) if self.steps else ""


class StickySpec(SpecPart):
    """The key that routes all requests of a caller to the same variant, in every
    worker.
    """

    header: HeaderName | None = None
    """Header (gRPC: metadata) for the routing: X-User-Id. Requests with equal values go
    to the same variant.
    """
    key: NonEmpty | None = None
    """Input column for the routing. Requests with equal values in the first row go to
    the same variant.
    """

    @model_validator(mode="after")
    def _one_of_both(self) -> "StickySpec":
        if (self.header is None) == (self.key is None):
            raise ValueError("exactly one of header and key is expected")
        return self


class GuardSpec(SpecPart):
    """The guard of an endpoint against rows that are outside of the training rows."""

    then: Literal["flag", "refuse"]
    """Action for a row with a value outside of the training rows of the version: flag
    answers it and marks it; refuse refuses the request.
    """


class KubernetesSpec(SpecPart):
    """The settings of an endpoint's server that apply only to Kubernetes. For other
    settings, see `container`.
    """

    replicas: int = Field(default=3, ge=0, le=1000)
    """Number of pods; with max_replicas, the minimum. 0: your own autoscaler sets the
    number.
    """
    max_replicas: int | None = Field(default=None, ge=2, le=1000)
    """Maximum number of pods of a HorizontalPodAutoscaler (needs container.cpus) or of
    KEDA. Default: no autoscaler.
    """
    target_cpu_percent: int = Field(default=70, ge=1, le=100)
    """Target CPU utilization of the autoscaler, in percent of container.cpus. It may
    never be reached with small models and fewer workers than cores.
    """
    requests_per_second: float | None = Field(default=None, ge=0.001, le=1_000_000)
    """Requests per second and pod above which KEDA adds pods, up to max_replicas. Only
    `render --for keda` uses it.
    """
    prometheus_url: str = Field(
        default="http://prometheus-operated.monitoring.svc:9090",
        pattern=HTTP_URL,
    )
    """Address of the Prometheus that KEDA queries. The default is a Service of the
    Prometheus operator.
    """
    gpus: int | None = Field(default=None, ge=0, le=64)
    """Number of GPUs per pod (nvidia.com/gpu). Default: the number of
    server.device_ids, or 1 for other GPU servers.
    """
    host: HostName | None = None
    """Public host name of an Ingress, or of an HTTPRoute if `gateway` is set."""
    ingress_class: DnsName | None = None
    """Class of the Ingress. Default: the default class of the cluster."""
    tls_secret: DnsName | None = None
    """Secret with the certificate of `host`, for an Ingress."""
    gateway: DnsName | None = None
    """Gateway in the endpoint's namespace for an HTTPRoute."""
    allowed_namespaces: ListOf[str] = ()
    """Other namespaces whose pods may call the endpoint; * for all. With `host`, all
    namespaces are allowed.
    """
    service_monitor: bool = False
    """Create a ServiceMonitor for the Prometheus operator."""
    service_monitor_key: str | None = Field(default=None, pattern=SECRET_KEY)
    """API key with scope `read` for Prometheus, if the server requires keys:
    SECRET/KEY.
    """
    service_monitor_labels: NodeLabels = ()
    """Labels of the ServiceMonitor, by which a Prometheus selects it:
    release=monitoring.
    """
    service_account: DnsName | None = None
    """ServiceAccount of the pods. Default: a separate ServiceAccount without
    permissions.
    """
    image_pull_secrets: ListOf[str] = ()
    """Secrets to pull the image with: a,b."""
    node_selector: NodeLabels = ()
    """Labels of the nodes for the pods: pool=gpu,a=b."""
    tolerations: ListOf[Taint] = ()
    """Taints that the pods tolerate, in kubectl's syntax: dedicated=ml:NoSchedule."""

    force_conflicts: bool = False
    """Overwrite fields of the endpoint's objects that another client, such as kubectl,
    has set.
    """

    @property
    def is_autoscaled(self) -> bool:
        """True if our autoscaler or the user's autoscaler sets the number of pods."""
        return self.max_replicas is not None or self.replicas == 0

    @model_validator(mode="after")
    def _go_together(self) -> "KubernetesSpec":
        """Raise ValueError if a field needs another field, or excludes it."""
        if self.max_replicas is not None and not 0 < self.replicas < self.max_replicas:
            raise ValueError(
                f"max_replicas {self.max_replicas} must exceed replicas {self.replicas}, which "
                "must be at least 1",
            )
        for name in ("service_monitor_key", "service_monitor_labels"):
            if getattr(self, name) and not self.service_monitor:
                raise ValueError(f"{name} requires `service_monitor`, which is not set")
        for name in ("ingress_class", "tls_secret", "gateway"):
            if getattr(self, name) is not None and self.host is None:
                raise ValueError(f"{name} requires `host`, which is not set")
            if name != "gateway" and self.gateway is not None and getattr(self, name) is not None:
                raise ValueError(
                    f"{name} is for an Ingress, but `gateway` selects an HTTPRoute: remove one of "
                    "them",
                )
        return self


class ProxySpec(SpecPart):
    """The replicas of a server of all registered models, behind an nginx that sends
    each model to the same replica. Only `render` uses these fields.
    """

    replicas: int = Field(default=2, ge=2, le=16)
    """Number of servers, each with the settings of `server`."""
    hot: int = Field(default=2, ge=1, le=2)
    """Number of replicas of a model with many requests."""
    hot_requests_per_second: int = Field(default=100, ge=1, le=1_000_000)
    """Predictions per second of a model in an nginx, above which its second replica
    answers.
    """
    image: str = Field(default="nginxinc/nginx-unprivileged:1.28.0-bookworm", pattern=IMAGE)
    """Image of nginx, whose user is not root."""


_DEFAULT_BUDGET = 1.0


class AlarmsSpec(SpecPart):
    """The alarms of all monitors of an endpoint together."""

    false_per_year: float | None = Field(default=None, ge=0.1, le=365)
    """Number of false alarms per year that all monitors of the endpoint together may
    raise. Default: 1 for the monitors without a false_alarm_rate whose reference is
    long enough.
    """
    min_effect: PositiveFloat | None = None
    """Change of the prediction, or of a class's probability, below which the drift of a
    column is listed without an alarm: 0.02. Default: every drift is an alarm.
    """


class EndpointSpec(SpecPart):
    """An endpoint with its variants, server, capture and monitors."""

    api_version: Literal["onnxserve/v1"] = Field(default="onnxserve/v1", alias="apiVersion")
    name: Name
    variants: dict[Name, VariantSpec]
    server: ServerSpec = ServerSpec()
    container: ContainerSpec = ContainerSpec()
    capture: CaptureSpec = CaptureSpec()
    observe: ObserveSpec | None = None
    serve: ServeSpec = ServeSpec()
    monitors: dict[Name, MonitorSpec] = Field(default_factory=dict)
    alarms: AlarmsSpec = AlarmsSpec()
    sticky: StickySpec | None = None
    guard: GuardSpec | None = None
    kubernetes: KubernetesSpec = KubernetesSpec()
    proxy: ProxySpec | None = None
    require: str | None = Field(default=None, pattern=REQUIREMENTS)
    """gate=passed: serve only versions that have passed the gate of their model.
    signature=/FILE: serve only versions that the key or authority in this PEM file has
    signed; name=true: as this version of this registered model. Together:
    gate=passed,name=true,signature=/FILE.
    """

    model_config = ConfigDict(populate_by_name=True)

    @field_validator("require", mode="before")
    @classmethod
    def _from_mapping(cls, require: object) -> object:
        if not isinstance(require, Mapping):
            return require
        parts = {**require, "name": "true"} if require.get("name") is True else require
        return ",".join(f"{name}={parts[name]}" for name in sorted(parts))

    @model_validator(mode="after")
    def _some_variant_answers(self) -> "EndpointSpec":
        answering = [
            variant
            for variant in self.variants.values()
            if variant.weight > 0 and not variant.shadow
        ]
        if self.variants and not answering:
            raise ValueError(
                "no variant receives traffic: a weight above 0 and shadow: false are expected",
            )
        return self

    @model_validator(mode="after")
    def _has_what_it_observes(self) -> "EndpointSpec":
        """Raise ValueError if an observed endpoint needs requests to its own server."""
        kinds = {monitor.kind for monitor in self.monitors.values()}
        of_requests = kinds & {"service_level", "shadow"} or self.capture.sinks
        if self.observe is not None and (of_requests or self.capture.fraction < 1):
            raise ValueError(
                "an observed endpoint has no server: monitors of the kinds service_level and "
                "shadow, capture.fraction and capture.sinks need one"
            )
        return self

    @property
    def memory_limit(self) -> int | None:
        """Memory limit of the container in bytes. By default it follows
        `server.model_memory`, with room for the workers, the agent and the supervisor.
        """
        if self.container.memory_bytes is None and self.server.model_memory is not None:
            processes = self.server.workers + 2
            return memory_bytes(self.server.model_memory) + processes * _PROCESS_BYTES
        return self.container.memory_bytes

    @property
    def requirements(self) -> frozenset[str]:
        return frozenset(filter(None, (self.require or "").split(",")))

    @property
    def requires_gate(self) -> bool:
        return GATE_PASSED in self.requirements

    @property
    def requires_name(self) -> bool:
        """True if each version must be signed as this version of its registered
        model.
        """
        return "name=true" in self.requirements

    @property
    def trusted_file(self) -> str:
        """The path of the key or certificates that must have signed each version; empty
        if no signature is required.
        """
        return (self.require or "").partition("signature=")[2]

    def budget_share(self, monitor: MonitorSpec) -> float | None:
        """Return the number of false alarms per year that the monitor may raise; None
        if it has its own rate instead of the default budget.
        """
        budget = self.alarms.false_per_year
        if budget is not None:
            return budget / max(len(self.monitors), 1)
        if monitor.has_own_rate:
            return None
        sharing = sum(not each.has_own_rate for each in self.monitors.values())
        return _DEFAULT_BUDGET / max(sharing, 1)

    def require_one_observed(self) -> None:
        """Raise InvalidConfig if the endpoint is observed and has several variants. An
        earlier build stored such specs, so they can be read.
        """
        if self.observe is not None and len(self.variants) > 1:
            names = " and ".join(self.variants)
            raise InvalidConfig(
                f"endpoint {self.name!r} is observed: its source does not record which of {names} "
                f"answered a row. `onnxserve delete NAME --endpoint {self.name}` removes a "
                "deployment; observe another model as another endpoint"
            )

    def monitor(self, name: str) -> MonitorSpec:
        """Return the monitor of this name, or raise NotFound."""
        if name not in self.monitors:
            names = ", ".join(sorted(self.monitors))
            hint = f"it has {names}" if names else "onnxserve monitor add makes one"
            raise NotFound(f"endpoint {self.name!r} has no monitor {name!r}; {hint}")
        return self.monitors[name]

    @model_validator(mode="after")
    def _logs_what_its_monitors_read(self) -> "EndpointSpec":
        """Raise ValueError if the log lacks a column or a period for a monitor."""
        keep = self.capture.retention
        capture = self.capture
        for name, monitor in self.monitors.items():
            column = monitor.sample.stratify if monitor.sample is not None else None
            if column in {*capture.drop, *capture.mask, *capture.keys}:
                why = (
                    f"{column!r} is in capture.drop, capture.mask or capture.keys: name another "
                    "column"
                )
                raise ValueError(
                    f"monitors.{name}.retrain.sample.stratify: {why}, or remove it there",
                )
            if keep is not None and length_of(keep) < monitor.max_row_age:
                hours = -(-monitor.max_row_age // timedelta(hours=1))
                least = f"{-(-hours // 24)}d" if hours > 48 else f"{hours}h"
                raise ValueError(
                    f"capture.retention {keep} is shorter than the period of the log that monitor "
                    f"{name!r} reads: at least {least} is expected",
                )
        return self
