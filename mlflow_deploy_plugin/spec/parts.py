"""The parts of a spec: their fields, defaults, bounds and descriptions."""

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from mlflow_deploy_plugin.errors import NotFound
from mlflow_deploy_plugin.spec.monitors import Length, MonitorSpec, TextList
from mlflow_deploy_plugin.spec.types import (
    DNS_NAME,
    IMAGE,
    NETWORK,
    NODE_LABEL,
    SECRET_KEY,
    TAINT,
    VARIABLE,
    VARIABLE_VALUE,
    Name,
    SpecPart,
    length_of,
    split_list,
)

RATE = r"^[1-9][0-9]{0,8} *(/|per) *([1-9][0-9]{0,3} *)?(second|minute|hour|day)s?$"
Rate = Annotated[str, StringConstraints(pattern=RATE)]
HeaderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]{1,64}$", to_lower=True)]
HostName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9.-]{1,253}$", to_lower=True)]
VariableName = Annotated[str, StringConstraints(pattern=VARIABLE)]
VariableValue = Annotated[str, StringConstraints(pattern=VARIABLE_VALUE)]
DnsName = Annotated[str, StringConstraints(pattern=DNS_NAME)]
NodeLabel = Annotated[str, StringConstraints(pattern=NODE_LABEL)]
Taint = Annotated[str, StringConstraints(pattern=TAINT)]
BatchSize = Annotated[int, Field(ge=1, le=65536)]
Device = Literal["cpu", "cuda", "tensorrt"]
ModelControlMode = Literal["none", "explicit"]
WorkerClass = Literal["fast", "gthread"]
_SHIP_SECONDS = 40


class VariantSpec(SpecPart):
    """One model of an endpoint."""

    model: str = Field(min_length=1)
    """Model URI: models:/X/Production, models:/X@alias, models:/X/tag:KEY=VALUE, models:/X/3, runs:/…, s3://…, a
    path."""
    weight: int = Field(default=100, ge=0, le=100)
    """Share of the endpoint's traffic, in parts of the sum."""
    shadow: bool = False
    """Never answers; gets a copy of the traffic, to be compared with what was answered."""
    allow_pyfunc: bool = False
    """Lets a stage, alias or tag move to a version without an ONNX form, which runs its own Python."""


class ProviderOptions(SpecPart):
    """Options of ONNX Runtime's providers for a GPU, by ONNX Runtime's names; what is not said has its default."""

    gpu_mem_limit: int | None = Field(default=None, ge=1024**2)
    """Bytes of the GPU that the arena of one session may take."""
    arena_extend_strategy: Literal["kNextPowerOfTwo", "kSameAsRequested"] | None = None
    """How that arena grows: by powers of two, or by what is needed."""
    cudnn_conv_algo_search: Literal["EXHAUSTIVE", "HEURISTIC", "DEFAULT"] | None = None
    """How cuDNN's algorithm of a convolution is chosen; EXHAUSTIVE tries all, per shape."""
    use_tf32: bool | None = None
    """false: multiply in full float32, as parity was proven; true is ONNX Runtime's default."""
    enable_cuda_graph: bool = False
    """Replay captured CUDA graphs for the batch sizes of the warm-up; runs then take turns."""
    trt_fp16_enable: bool | None = None
    """Let TensorRT compute in float16."""
    trt_engine_cache_path: str | None = Field(default=None, min_length=1)
    """Folder of TensorRT's engines. Default: one in the server's state folder."""


class ServerSpec(SpecPart):
    """The server process of an endpoint."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every interface."""
    port: int | None = Field(default=None, ge=1, le=65535)
    """Port to listen on. Default: the first free one from 8080 up."""
    api_keys: bool = False
    """Every request needs an API key (onnxserve keys create), but for health checks."""
    jwt_issuer: str | None = Field(default=None, pattern=r"^https?://[!-~]{1,500}$")
    """Callers may come with a token of this OpenID Connect issuer instead of a key; with jwt_audience."""
    jwt_audience: str | None = Field(default=None, min_length=1)
    """Name of this server in the issuer's tokens: their claim aud."""
    insecure: bool = False
    """Lets a server without auth listen beyond this machine, for example behind a gateway with its own."""
    grpc_port: int | None = Field(default=None, ge=1, le=65535)
    """Port for the Open Inference Protocol over gRPC. Default: no gRPC."""
    workers: int = Field(default=1, ge=1, le=256)
    """Worker processes; each holds the models once."""
    threads: int = Field(default=4, ge=1, le=256)
    """Requests that one worker handles at the same time."""
    worker_class: WorkerClass = "fast"
    """The worker that speaks HTTP: fast answers on an event loop; gthread is gunicorn's own, for debugging."""
    certfile: str | None = Field(default=None, min_length=1)
    """Certificate chain in PEM; with keyfile, the server speaks https only. On kubernetes each of these files is
    SECRET/KEY: flights-tls/tls.crt."""
    keyfile: str | None = Field(default=None, min_length=1)
    """Private key of certfile in PEM."""
    ca_certs: str | None = Field(default=None, min_length=1)
    """Authorities in PEM. Callers need a client certificate of one of them (mutual TLS); with certfile."""
    device: Device = "cpu"
    """Where ONNX Runtime runs; cuda and tensorrt refuse to fall back."""
    device_ids: Annotated[tuple[Annotated[int, Field(ge=0, le=1023)], ...], BeforeValidator(split_list)] = Field(
        default=(), max_length=64
    )
    """GPUs that the workers share out among them: 0,1. Default: all use GPU 0."""
    io_binding: bool = False
    """Copy inputs to the GPU from page-locked buffers (ONNX Runtime's IO binding)."""
    provider_options: ProviderOptions = ProviderOptions()
    intra_op_num_threads: int | None = Field(default=None, ge=1)
    """Threads of ONNX Runtime per session, and of the libraries of a pyfunc. Default: the cores allowed, divided by
    the workers."""
    max_worker_memory_bytes: int | None = Field(default=None, ge=64 * 1024 * 1024)
    """Memory that one worker may take; a version that would pass it is refused, and the one before serves on. Default:
    its share of the memory of its container or unit, where that is limited."""
    max_body_bytes: int = Field(default=16 * 1024 * 1024, ge=1024)
    """Largest request body accepted, and the most values (rows × outputs) of an answer, which may always have 16777216;
    above it the answer is 413."""
    request_timeout_seconds: int = Field(default=60, ge=1, le=3600)
    """What a request may take to arrive, and a pyfunc to answer; a worker that is silent this long is replaced."""
    graceful_timeout_seconds: int = Field(default=30, ge=1, le=3600)
    """What requests in flight may take to finish after SIGTERM."""
    model_control_mode: ModelControlMode = "none"
    """explicit: whoever reaches the server may load and unload endpoints (V2 model repository), but for web pages of
    elsewhere."""
    allowed_hosts: Annotated[tuple[HostName, ...], BeforeValidator(split_list)] = Field(default=(), max_length=64)
    """Names by which callers may reach the routes that load and unload: flights.svc,models.example. IP addresses,
    localhost and `host` may always."""
    max_batch_size: int | None = Field(default=None, ge=1, le=65536)
    """Rows that requests are joined to at most; 1: never. Default: 1 on a CPU, 32 on a GPU."""
    preferred_batch_size: Annotated[tuple[BatchSize, ...], BeforeValidator(split_list)] = Field(
        default=(), max_length=16
    )
    """Sizes of a batch that are computed at once, without waiting for more rows: 8,32."""
    max_queue_delay_microseconds: int = Field(default=500, ge=0, le=10_000_000)
    """What a request may wait for others to be joined with."""
    max_queue_size: int = Field(default=1024, ge=1, le=1_000_000)
    """Requests that wait for a batch of one version; above it: 429."""
    default_timeout_microseconds: int = Field(default=0, ge=0)
    """A request that is not being computed after this time is answered with 504; 0: never. A request may ask for less
    (parameter `timeout`)."""
    max_concurrent_requests: int | None = Field(default=None, ge=1, le=1000)
    """Requests for predictions in flight in one worker; above it: 429. The gthread worker never has more than
    `threads`."""
    rate_limit: Rate | None = None
    """Requests for predictions by one caller, as 100/minute: 429 above it. Counted by each worker, or by all together
    where ONNXSERVE_REDIS_URL is set."""
    rate_limit_header: HeaderName | None = None
    """Header that names the caller for the rate limit. Default: its address, of IPv6 its /64."""
    response_cache_bytes: int = Field(default=0, ge=0)
    """Memory for answers that are given again to the same question; 0: none are kept."""
    explain_max_rows: int = Field(default=100, ge=0, le=10_000)
    """Rows of one request that are explained (POST /explain); 0: none are, ever."""
    max_spool_bytes: int = Field(default=1024**3, ge=1024**2)
    """What captured requests may take on this disk while the inference log is down; those above it are answered and not
    captured."""
    response_cache_seconds: int = Field(default=300, ge=1, le=86400)
    """How long such an answer is kept."""

    @property
    def scheme(self) -> Literal["http", "https"]:
        return "http" if self.certfile is None else "https"

    @property
    def stop_seconds(self) -> int:
        """The seconds that its end may take: for the requests in flight, and for the agent to ship captured rows."""
        return self.graceful_timeout_seconds + _SHIP_SECONDS

    @property
    def is_open(self) -> bool:
        """True if everyone who reaches the server could use it, and the spec does not say that this is intended."""
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
        if (self.certfile is None) != (self.keyfile is None):
            raise ValueError("certfile and keyfile belong together: say both, or neither")
        if self.ca_certs is not None and self.certfile is None:
            raise ValueError("ca_certs is about https: certfile and keyfile are expected with it")
        if (self.jwt_issuer is None) != (self.jwt_audience is None):
            raise ValueError("jwt_issuer and jwt_audience belong together: say both, or neither")
        if self.grpc_port is not None and self.grpc_port == self.port:
            raise ValueError(f"port and grpc_port are both {self.port}; each needs its own")
        return self

    @model_validator(mode="after")
    def _fit_the_device(self) -> "ServerSpec":
        said = self.provider_options.model_dump(exclude_defaults=True)
        if self.device == "cpu" and (self.device_ids or self.io_binding or said):
            name = next(
                (f"provider_options.{name}" for name in said), "device_ids" if self.device_ids else "io_binding"
            )
            raise ValueError(f"{name} is for a GPU, and device is cpu: device cuda or tensorrt is expected")
        if self.device == "cuda" and (name := next((name for name in said if name.startswith("trt_")), "")):
            raise ValueError(f"provider_options.{name} is for device tensorrt, and device is cuda")
        if self.device_ids and (
            len(set(self.device_ids)) < len(self.device_ids) or self.workers < len(self.device_ids)
        ):
            raise ValueError(
                f"device_ids {', '.join(map(str, self.device_ids))} with {self.workers} workers: each GPU once, and at "
                "least one worker for each is expected"
            )
        return self


class ContainerSpec(SpecPart):
    """The container of an endpoint's server, on every target that runs an image."""

    image: str | None = Field(default=None, pattern=IMAGE)
    """Image of the server, as docker/Dockerfile or `onnxserve build-docker` makes it. Default: onnxserve:cpu, for a GPU
    onnxserve:gpu."""
    cpus: float | None = Field(default=None, ge=0.01, le=1024)
    """Processors that it may use: 1.5. Default: no limit."""
    memory_bytes: int | None = Field(default=None, ge=64 * 1024 * 1024)
    """Memory that it may use; the kernel kills what passes it. Default: no limit."""
    environment: dict[VariableName, VariableValue] = Field(default={})
    """An environment variable of the server; its value is in the spec."""
    secrets: dict[VariableName, str] = Field(default={})
    """An environment variable whose value does not stand in the spec: on docker the path of a file that holds it, on
    kubernetes SECRET/KEY in the namespace."""
    secret_files: dict[VariableName, str] = Field(default={})
    """An environment variable that names a file, as GOOGLE_APPLICATION_CREDENTIALS, which the container gets to read:
    on docker its path, on kubernetes SECRET/KEY in the namespace."""
    restart: Literal["unless-stopped", "on-failure", "no"] = "unless-stopped"
    """Docker's restart policy; kubernetes always restarts."""
    pids: int = Field(default=1024, ge=32, le=65536)
    """Processes and threads that docker lets it have."""
    network: str | None = Field(default=None, pattern=NETWORK)
    """Docker network in which it reaches others, and they reach it by its name; host: this machine's own. Default: one
    on which only this machine reaches it."""

    @model_validator(mode="after")
    def _each_once(self) -> "ContainerSpec":
        if both := sorted(self.secrets.keys() & self.secret_files.keys()):
            raise ValueError(f"secrets and secret_files both name {both[0]}: say its value, or its file")
        return self

    def image_for(self, device: Device) -> str:
        return self.image or ("onnxserve:cpu" if device == "cpu" else "onnxserve:gpu")


_RESERVED = ("_", "output.")
"""The beginnings of the names of columns that the inference log has itself."""


class CaptureSpec(SpecPart):
    """The part of the traffic that is captured for monitoring."""

    fraction: float = Field(default=1.0, ge=0, le=1)
    """Share of the requests that are captured."""
    max_rows_per_request: int = Field(default=10_000, ge=1)
    """Rows kept of one request."""
    drop: TextList = ()
    """Columns that are never written down: names of the signature, prediction, output.NAME."""
    mask: TextList = ()
    """Columns that stand in the log as keyed hashes, equal where the values are. The key is a file in the server's
    state folder."""
    keys: TextList = ()
    """Further columns that requests may have, such as customer_id. They are captured, so that labels find their rows by
    them, and the model is not fed with them."""
    retention: Length | None = None
    """Rows and labels older than this (90d) are deleted from the log by the controller, but for those that a monitor
    still needs. Default: never."""

    @model_validator(mode="after")
    def _each_once(self) -> "CaptureSpec":
        if both := sorted({*self.drop} & {*self.mask}):
            raise ValueError(f"drop and mask both name {both[0]!r}; a column is left out or masked")
        if reserved := next((name for name in self.keys if name == "prediction" or name.startswith(_RESERVED)), ""):
            raise ValueError(
                f"keys names {reserved!r}, which the log has itself: a name other than prediction is expected, and "
                "without an underscore or output. at its beginning"
            )
        return self


class StickySpec(SpecPart):
    """The key by which all requests of a caller go to one variant, in every worker."""

    header: HeaderName | None = None
    """Header (over gRPC: metadata) whose value keeps to one variant: X-User-Id."""
    key: str | None = Field(default=None, min_length=1)
    """Input column whose value in the first row keeps to one variant."""

    @model_validator(mode="after")
    def _one_of_both(self) -> "StickySpec":
        if (self.header is None) == (self.key is None):
            raise ValueError("sticky takes exactly one of header and key")
        return self


class KubernetesSpec(SpecPart):
    """The part of an endpoint's server that only Kubernetes has; `container` has what every container has."""

    replicas: int = Field(default=3, ge=0, le=1000)
    """Pods; with max_replicas the fewest. 0: an autoscaler of yours says how many."""
    max_replicas: int | None = Field(default=None, ge=2, le=1000)
    """The most pods of a HorizontalPodAutoscaler, which needs container.cpus. Default: none, `replicas` stay as they
    are."""
    target_cpu_percent: int = Field(default=70, ge=1, le=100)
    """Share of container.cpus that the autoscaler keeps the pods at. A worker with a small model takes one core at
    most: with fewer workers than cores that share is never reached."""
    gpus: int | None = Field(default=None, ge=0, le=64)
    """GPUs of a pod (nvidia.com/gpu). Default: as many as server.device_ids; 1 for another GPU server."""
    host: HostName | None = None
    """Public host name: of an Ingress, or of an HTTPRoute where `gateway` is set."""
    ingress_class: DnsName | None = None
    """Class of the Ingress. Default: the cluster's."""
    tls_secret: DnsName | None = None
    """Secret with the certificate of `host`, for Ingress."""
    gateway: DnsName | None = None
    """Gateway of the endpoint's namespace that an HTTPRoute is attached to."""
    allowed_namespaces: TextList = ()
    """Namespaces whose pods may call the endpoint, besides its own; * for all. With `host` all may."""
    service_monitor: bool = False
    """Makes a ServiceMonitor, for the Prometheus operator."""
    service_monitor_key: str | None = Field(default=None, pattern=SECRET_KEY)
    """API key of scope `read` that Prometheus sends, where callers need one: SECRET/KEY."""
    service_account: DnsName | None = None
    """ServiceAccount of the pods. Default: one of their own, without any right."""
    image_pull_secrets: TextList = ()
    """Secrets with which the image is pulled: a,b."""
    node_selector: Annotated[tuple[NodeLabel, ...], BeforeValidator(split_list)] = ()
    """Labels of the nodes that pods may run on: pool=gpu,a=b."""
    tolerations: Annotated[tuple[Taint, ...], BeforeValidator(split_list)] = ()
    """Taints that pods tolerate, as kubectl writes them: dedicated=ml:NoSchedule."""

    force_conflicts: bool = False
    """Take over fields of the endpoint's objects that others, as kubectl, have set."""

    @property
    def is_autoscaled(self) -> bool:
        """True if an autoscaler, ours or the user's, sets the number of pods."""
        return self.max_replicas is not None or self.replicas == 0

    @model_validator(mode="after")
    def _go_together(self) -> "KubernetesSpec":
        if self.max_replicas is not None and not 0 < self.replicas < self.max_replicas:
            raise ValueError(
                f"max_replicas {self.max_replicas} is to be more than replicas, {self.replicas}, and those 1 or more"
            )
        if self.service_monitor_key is not None and not self.service_monitor:
            raise ValueError("service_monitor_key goes with `service_monitor`, which is not set")
        for name in ("ingress_class", "tls_secret", "gateway"):
            if getattr(self, name) is not None and self.host is None:
                raise ValueError(f"{name} goes with `host`, which is not set")
            if name != "gateway" and self.gateway is not None and getattr(self, name) is not None:
                raise ValueError(f"{name} is for an Ingress, and `gateway` asks for an HTTPRoute: say one of both")
        return self


class EndpointSpec(SpecPart):
    """One endpoint: its variants, its server, its capture and its monitors."""

    api_version: Literal["onnxserve/v1"] = Field(default="onnxserve/v1", alias="apiVersion")
    name: Name
    variants: dict[Name, VariantSpec]
    server: ServerSpec = ServerSpec()
    container: ContainerSpec = ContainerSpec()
    capture: CaptureSpec = CaptureSpec()
    monitors: dict[Name, MonitorSpec] = Field(default_factory=dict)
    sticky: StickySpec | None = None
    kubernetes: KubernetesSpec = KubernetesSpec()
    require: Literal["gate=passed"] | None = None
    """gate=passed: a version that has not passed its model's gate is not served."""

    model_config = ConfigDict(populate_by_name=True)

    @model_validator(mode="after")
    def _some_variant_answers(self) -> "EndpointSpec":
        answering = [variant for variant in self.variants.values() if variant.weight > 0 and not variant.shadow]
        if self.variants and not answering:
            raise ValueError("no variant answers: one needs a weight above 0 and shadow: false")
        return self

    def monitor(self, name: str) -> MonitorSpec:
        """Return the monitor of this name, or raise NotFound."""
        if name not in self.monitors:
            known = ", ".join(sorted(self.monitors))
            hint = f"it has {known}" if known else "onnxserve monitor add makes one"
            raise NotFound(f"endpoint {self.name!r} has no monitor {name!r}; {hint}")
        return self.monitors[name]

    @model_validator(mode="after")
    def _keeps_what_its_monitors_read(self) -> "EndpointSpec":
        keep = self.capture.retention
        if keep is None:
            return self
        for name, monitor in self.monitors.items():
            if length_of(keep) < monitor.max_row_age:
                hours = -(-monitor.max_row_age // timedelta(hours=1))
                least = f"{-(-hours // 24)}d" if hours > 48 else f"{hours}h"
                raise ValueError(
                    f"capture.retention {keep} is shorter than what monitor {name!r} reads of the log: "
                    f"at least {least} is expected"
                )
        return self
