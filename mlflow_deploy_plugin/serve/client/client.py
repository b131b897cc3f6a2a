"""`Client` and `AsyncClient` request predictions and explanations from a running
endpoint, and send labels.
"""

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import orjson
import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    InvalidHeader,
    LocationParseError,
    NewConnectionError,
)
from urllib3.exceptions import TimeoutError as PoolTimeout
from urllib3.util import parse_url

from mlflow_deploy_plugin.core import errors
from mlflow_deploy_plugin.core.errors import InvalidRequest, NotReady, OnnxserveError
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.version import __version__
from mlflow_deploy_plugin.serve.client.rows import (
    JSON,
    Array,
    decode_predictions,
    decode_tensors,
    dump_json,
    encode_json,
    encode_rows,
    encode_tensors,
)

_HEADER_LENGTH = "Inference-Header-Content-Length"
_CONNECT_SECONDS = 5.0
_MOST_LABELS = 10_000
"""The maximum number of labels per request, as in `serve/protocols/feedback.py`."""
_REFUSED_UNDONE = (429, 503)
"""The statuses after which a request is sent again, because the server has not computed
anything.
"""

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class RetryPolicy:
    """The number of tries of a request, and the pauses between the tries.

    A request is sent again after a failed connection or a status 429 or 503: the server
    has not computed anything then. The pause is drawn between zero and a bound that
    doubles from the first pause to the longest pause ("full jitter",
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/). If the
    server specifies a pause (`Retry-After`), the client waits for up to 1.1 times the
    pause, so that not all clients retry at the same moment.

    Attributes:
        tries: the maximum number of times that a request is sent.
        first_pause_seconds: the bound of the first pause in seconds.
        max_pause_seconds: the bound of the longest pause in seconds.
    """

    tries: int = 4
    first_pause_seconds: float = 0.1
    max_pause_seconds: float = 10.0

    def pause_seconds(
        self,
        attempt: int,
        retry_after: float | None,
        generator: random.Random,
    ) -> float:
        """Return the pause after an attempt; the first attempt has the number 0."""
        if retry_after is not None:
            return retry_after * generator.uniform(1.0, 1.1)
        return generator.uniform(
            0.0,
            min(self.max_pause_seconds, self.first_pause_seconds * 2.0**attempt),
        )


@dataclass(frozen=True, eq=False)
class Prediction:
    """The predictions for the rows of a request. `np.asarray(prediction)` returns the
    only output.

    Attributes:
        values: the output as an array, rows first; for several outputs, a dict from
            their names to arrays.
        id: the X-Prediction-Id, for `feedback`; this and each field below is empty if
            the server omits its header.
        model: the registered model that answered.
        version: the version of the model.
        request_id: the X-Request-Id of the request.
    """

    values: Array | dict[str, Array]
    id: str = ""
    model: str = ""
    version: str = ""
    request_id: str = ""

    def __len__(self) -> int:
        if isinstance(self.values, dict):
            return len(next(iter(self.values.values())))
        return len(self.values)

    def __array__(
        self,
        dtype: npt.DTypeLike | None = None,
        copy: bool | None = None,
    ) -> Array:
        if isinstance(self.values, dict):
            raise TypeError(
                f"the prediction has the outputs {', '.join(self.values)}: select an output from "
                "`values`",
            )
        return np.array(self.values, dtype=dtype, copy=copy)


@dataclass
class Client:
    """A client of one endpoint. Any number of threads may share it. Raises
    InvalidConfig for a URL without a host.

    Args:
        url: the address of the server, or of a mounted model
            (`http://HOST:PORT[/PREFIX]`).
        endpoint: the name of the endpoint; None for the server's default endpoint.
        timeout_seconds: the time limit of a call, including its retries and pauses.
        headers: the header fields of every request, such as `{"Authorization": "Bearer
            KEY"}`.
        retries: the number of tries of a request, and the pauses between them.
        connections: the number of connections that are kept open. Additional threads
            open a new connection per request.
        only_json: never send Arrow. The client sets this after a server has refused
            Arrow (MLflow's does, with 415).
        pool: the connection pool for all requests. Specify a pool for a proxy
            (`urllib3.ProxyManager`) or for your own certificates
            (`urllib3.PoolManager(ca_certs=…)`).
        generator: the source of the random pauses.
    """

    url: str
    endpoint: str | None = None
    timeout_seconds: float = 30.0
    # Headers may contain a key.
    headers: Mapping[str, str] = field(
        default_factory=dict,
        repr=False,
    )
    retries: RetryPolicy = field(default_factory=RetryPolicy)
    connections: int = 10
    only_json: bool = False
    pool: urllib3.PoolManager | None = None
    generator: random.Random = field(default_factory=random.Random, repr=False)

    def __post_init__(self) -> None:
        try:
            parts = parse_url(self.url)
            is_address = parts.scheme in ("http", "https") and bool(parts.host)
        except LocationParseError:
            is_address = False
        if not is_address:
            raise errors.InvalidConfig(
                f"the URL is {self.url[:200]!r}; http://HOST:PORT is expected",
            )
        self._base = self.url.rstrip("/")
        if self.endpoint is None:
            self._route = self._base
        else:
            self._route = f"{self._base}/endpoints/{quote(self.endpoint, safe='')}"
        self._pool = self.pool or urllib3.PoolManager(maxsize=self.connections)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        self._pool.clear()

    def predict(
        self,
        rows: Any,
        *,
        params: Mapping[str, object] | None = None,
        event_time: datetime | None = None,
        request_id: str | None = None,
    ) -> Prediction:
        """Return the predictions of the model's `predict` for these rows.

        Args:
            rows: a frame; a pandas Series, if the model has one column; an array of
                [rows, columns] in the signature's order, or the model's tensor; a dict
                of columns or tensors by name; a list of records or rows; or a single
                record.
            params: MLflow's params.
            event_time: the time of the event that the rows describe, with a time zone;
                default: the request's time.
            request_id: the id of the request in the server's logs, 1 to 128 visible
                ASCII characters.

        Raises:
            InvalidRequest: the rows cannot be encoded, or the server rejects them.
            TooManyRequests, NotReady: the server refuses the request or does not
                respond, and no time or try is left.
            DeadlineExceeded: the time limit has passed.
            OnnxserveError: any other error. The errors of a server have its
                `request_id` and `status`.
        """
        headers = {"X-Request-Id": request_id} if request_id else {}
        if event_time:
            headers["X-Event-Time"] = event_time.isoformat()
        if not params and not self.only_json:
            body, content_type, accept = encode_rows(rows)
            fields = {**headers, "Content-Type": content_type, "Accept": accept}
            try:
                return _prediction(self._send("POST", f"{self._route}/invocations", body, fields))
            except errors.UnsupportedMediaType:
                if content_type == JSON:
                    raise
                self.only_json = True
        return _prediction(self.invoke(encode_json(rows, params), headers))

    def invoke(
        self,
        body: bytes,
        headers: Mapping[str, str] | None = None,
    ) -> urllib3.BaseHTTPResponse:
        """Return the response of `/invocations` to a JSON body, as the server sent it.
        Raises the errors of `predict`.
        """
        return self._post_json(f"{self._route}/invocations", body, headers)

    def infer(
        self,
        inputs: Mapping[str, object],
        outputs: Sequence[str] | None = None,
    ) -> Prediction:
        """Return outputs of the graph by name, including outputs that `predict` omits,
        such as `probabilities`.

        `inputs` are the graph's tensors, or the signature's columns as [N] or [N, 1].
        By default the response contains all outputs.

        Raises:
            InvalidRequest: V2 has no datatype for an array, or the server rejects the
                inputs.
            TooManyRequests, NotReady, DeadlineExceeded, OnnxserveError: as in
                `predict`.
        """
        head, tensors = encode_tensors(inputs, outputs)
        headers = {"Content-Type": "application/octet-stream", _HEADER_LENGTH: str(len(head))}
        response = self._send(
            "POST",
            f"{self._base}/v2/models/{self._name()}/infer",
            head + tensors,
            headers,
        )
        with _answer_errors(response):
            start = int(response.headers.get(_HEADER_LENGTH, len(response.data)))
            values = decode_tensors(response.data, start)
        return _prediction(response, values)

    def explain(
        self,
        rows: Any,
        *,
        max_evals: int | None = None,
        seed: int | None = None,
        version: str | None = None,
    ) -> dict[str, Any]:
        """Return the response of `/explain` (docs/examine.md#explanations); `values`
        and `base_values` are arrays.

        `max_evals` limits the model evaluations per row. The `version` must be loaded;
        None selects the version that would answer `predict`. Raises the errors of
        `predict`, and InvalidRequest if the model cannot be explained.
        """
        params = {"max_evals": max_evals, "seed": seed, "version": version}
        params = {name: value for name, value in params.items() if value is not None}
        body = encode_json(rows, params)
        response = self._post_json(f"{self._route}/explain", body)
        with _answer_errors(response):
            document: dict[str, Any] = {**orjson.loads(response.data)}
            return document | {
                name: np.asarray(document[name]) for name in ("values", "base_values")
            }

    def feedback(self, prediction: Prediction | str, labels: Any) -> int:
        """Send the true labels of an earlier prediction, and return the number of
        labels that the server has accepted.

        Args:
            labels: a label per row, in order; a dict from row numbers (from 0) to
                labels; or one label for all rows. The label None withdraws an earlier
                label.

        Raises the errors of `predict`, and InvalidRequest if the prediction has no id,
        or a label is not a text, number or boolean. Labels that were accepted before an
        error remain; sending the labels again is harmless.
        """
        prediction_id = prediction.id if isinstance(prediction, Prediction) else prediction
        if not prediction_id:
            raise InvalidRequest("the prediction has no id: its server sent no X-Prediction-Id")
        if isinstance(labels, Mapping):
            entries = [{"row": int(row), "label": label} for row, label in labels.items()]
        elif isinstance(labels, str) or not hasattr(labels, "__len__"):
            entries = [{"label": labels}]
        else:
            entries = [{"row": row, "label": label} for row, label in enumerate(labels)]
        entries = [{"prediction_id": prediction_id, **entry} for entry in entries]
        for start in range(0, len(entries), _MOST_LABELS):
            body = dump_json({"feedback": entries[start : start + _MOST_LABELS]})
            self._post_json(f"{self._route}/feedback", body)
        return len(entries)

    def metadata(self) -> dict[str, Any]:
        """Return V2's metadata of the model: the name, versions, inputs and outputs of
        the graph.
        """
        response = self._send("GET", f"{self._base}/v2/models/{self._name()}")
        with _answer_errors(response):
            return {**orjson.loads(response.data)}

    def ready(self) -> bool:
        """Return True if the endpoint can predict now. The client asks once, without a
        retry.
        """
        if self.endpoint is None:
            url = f"{self._base}/ping"
        else:
            url = f"{self._base}/v2/models/{self._name()}/ready"
        try:
            self._send("GET", url, retries=RetryPolicy(tries=1))
        except OnnxserveError:
            return False
        return True

    def _name(self) -> str:
        """Return the endpoint's name for request paths. The default endpoint is the
        first in the server's index. Raises NotReady if the index is empty, and
        ScopeMissing if the key does not permit to read it.
        """
        if self.endpoint is not None:
            return quote(self.endpoint, safe="")
        try:
            response = self._post_json(f"{self._base}/v2/repository/index", b"{}")
        except errors.ScopeMissing as error:
            error.message = f"specify the endpoint's name, Client(URL, NAME): {error.message}"
            error.args = (error.message,)
            raise
        with _answer_errors(response):
            names = [endpoint["name"] for endpoint in orjson.loads(response.data)]
            if not names:
                raise NotReady("the server has no endpoint")
            return quote(names[0], safe="")

    def _post_json(
        self,
        url: str,
        body: bytes,
        headers: Mapping[str, str] | None = None,
    ) -> urllib3.BaseHTTPResponse:
        return self._send(
            "POST",
            url,
            body,
            {**(headers or {}), "Content-Type": JSON, "Accept": JSON},
        )

    def _send(
        self,
        method: str,
        url: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        retries: RetryPolicy | None = None,
    ) -> urllib3.BaseHTTPResponse:
        """Send a request, and send it again while the server refuses it and a try and
        time are left; return the successful response.

        Raises NotReady if the connection fails or breaks off, DeadlineExceeded after
        the time limit, InvalidRequest if a header field cannot be sent, and otherwise
        the error that the server reports.
        """
        retries = retries or self.retries
        deadline = time.monotonic() + self.timeout_seconds
        fields = {"User-Agent": f"onnxserve/{__version__}", **self.headers, **(headers or {})}
        attempt = 0
        while True:
            left_seconds = max(deadline - time.monotonic(), 0.001)
            connect_seconds = min(left_seconds, _CONNECT_SECONDS)
            timeout = urllib3.Timeout(connect=connect_seconds, read=left_seconds)
            try:
                response = self._pool.request(
                    method,
                    url,
                    body=body or None,
                    headers=fields,
                    timeout=timeout,
                    retries=False,
                    redirect=False,
                )
            except (NewConnectionError, ConnectTimeoutError):
                error: OnnxserveError = NotReady(f"cannot connect to {url}")
            except PoolTimeout:
                message = f"the server did not answer {url} within {self.timeout_seconds:g} s"
                raise errors.DeadlineExceeded(message) from None
            except HTTPError as broken:
                reason = one_line(broken, 200)
                raise NotReady(f"the connection to {url} broke off: {reason}") from None
            except ValueError as unsent:  # HTTP cannot represent a header field.
                reason = one_line(unsent, 200)
                raise InvalidRequest(f"the request cannot be sent: {reason}") from None
            else:
                if 200 <= response.status < 300:
                    return response
                error = response_error(response.status, response.data, response.headers)
                if response.status not in _REFUSED_UNDONE:
                    raise error
            pause = retries.pause_seconds(attempt, error.retry_after, self.generator)
            attempt += 1
            if attempt >= retries.tries or time.monotonic() + pause >= deadline:
                raise error
            time.sleep(pause)


def _in_thread(
    method: Callable[Concatenate[Client, _Given], _Result],
) -> Callable[Concatenate["AsyncClient", _Given], Coroutine[Any, Any, _Result]]:
    """Return a method of `Client` as a coroutine that runs in a thread."""

    @wraps(method)
    async def call(
        self: "AsyncClient",
        /,
        *positional: _Given.args,
        **named: _Given.kwargs,
    ) -> _Result:
        bound_call = partial(method, self._client, *positional, **named)
        return await asyncio.get_running_loop().run_in_executor(self._threads, bound_call)

    return call


class AsyncClient:
    """A `Client` for asyncio. Each call runs in a thread; a native async client would
    be slower (docs/client.md).

    Args:
        url: the address of the server, as for `Client`.
        endpoint: the name of the endpoint; None for the server's default endpoint.
        options: the other arguments of `Client`.
    """

    def __init__(
        self,
        url: str,
        endpoint: str | None = None,
        **options: Any,
    ) -> None:
        self._client = Client(url, endpoint, **options)
        self._threads = ThreadPoolExecutor(self._client.connections, "onnxserve-client")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.close()

    async def close(self) -> None:
        await asyncio.to_thread(self._threads.shutdown)
        self._client.close()

    predict = _in_thread(Client.predict)
    infer = _in_thread(Client.infer)
    explain = _in_thread(Client.explain)
    feedback = _in_thread(Client.feedback)
    metadata = _in_thread(Client.metadata)
    ready = _in_thread(Client.ready)


def response_error(
    status: int,
    content: bytes,
    headers: Mapping[str, str],
) -> OnnxserveError:
    """Return the error that a response reports, with the server's message, the
    request's id, and the seconds of Retry-After (None if it is missing or invalid).
    """
    try:
        document = orjson.loads(content)
    except orjson.JSONDecodeError:
        document = None
    if isinstance(document, dict):
        message = f"the server answered with status {status}"
        for name in ("message", "error", "detail"):
            if text := document.get(name):
                message = str(text)
                break
    else:
        message = f"the server answered with status {status} and no JSON object"
    try:
        retry_after = urllib3.Retry().parse_retry_after(headers.get("Retry-After", ""))
    except InvalidHeader:
        retry_after = None
    error = errors.error_of_status(status)(message)
    error.retry_after = None if retry_after is None else int(retry_after)
    error.status = status
    error.request_id = headers.get("X-Request-Id", "")
    return error


@contextmanager
def _answer_errors(response: urllib3.BaseHTTPResponse) -> Iterator[None]:
    """Raise OnnxserveError if the `with` block cannot parse the response, such as a
    proxy's login page.
    """
    try:
        yield
    except (
        AttributeError,
        LookupError,
        OSError,
        TypeError,
        ValueError,
    ):  # raised by orjson, numpy and Arrow
        kind = one_line(response.headers.get("Content-Type", "no Content-Type"), 100)
        error = OnnxserveError(
            f"the server answered with status {response.status} and an unknown form ({kind})",
        )
        error.status = response.status
        error.request_id = response.headers.get("X-Request-Id", "")
        raise error from None


def _prediction(
    response: urllib3.BaseHTTPResponse,
    values: Array | dict[str, Array] | None = None,
) -> Prediction:
    """Return the prediction in a response; None as `values` decodes the body of
    `/invocations`. Raises OnnxserveError if the body cannot be decoded.
    """
    if values is None:
        with _answer_errors(response):
            values = decode_predictions(response.headers.get("Content-Type", ""), response.data)
    names = ("X-Prediction-Id", "X-Model-Name", "X-Model-Version", "X-Request-Id")
    return Prediction(
        values,
        *(response.headers.get(name, "") for name in names),
    )
