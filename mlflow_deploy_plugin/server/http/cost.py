"""What a request will cost, by what requests like it have cost: whether it may be answered on the event loop."""

import time
from collections.abc import Callable

from mlflow_deploy_plugin.server.http.messages import RawRequest, RawResponse

INLINE_SECONDS = 0.001
_INLINE_BYTES = 65536
_CLASSES = 4096
_DOWN, _UP, _MOST = 0.5, 0.25, 8
_LEARN_EVERY = 8
_INSTANT = frozenset({"/ping", "/health", "/v2/health/live", "/v2/health/ready"})

_Class = tuple[str, str | None, int]


class Costs:
    """Average seconds by path, content type (which is what a protocol reads) and size of the body, in powers of two.

    A class that is not known yet, and what is no prediction (a page, an admin call that waits for other workers), is no
    matter for the loop. An average falls faster than it rises, since in a thread requests pay for their neighbours too;
    and one measurement counts as eight times the average at most: a busy machine takes the core away for milliseconds
    now and then, and three slow ones in a row say that it is the model. On the loop, where each microsecond counts, one
    in eight of the quick answers is learned from, and every slow one.

    Args:
        may_be_inline: false while predictions wait for each other (batching), or for another process.
    """

    def __init__(self, may_be_inline: Callable[[], bool]) -> None:
        self._may_be_inline = may_be_inline
        self._seconds: dict[_Class, float] = {}
        self._turn = 0

    def is_quick(self, request: RawRequest) -> bool:
        """Whether the answer is expected within `INLINE_SECONDS`."""
        path, headers, size = request.path, request.headers, len(request.body)
        seconds = self._seconds.get((path, headers.get("content-type"), size.bit_length()))
        if seconds is None:
            return path in _INSTANT and "content-encoding" not in headers
        is_small = size <= _INLINE_BYTES and "content-encoding" not in headers
        return seconds < INLINE_SECONDS and is_small and self._may_be_inline()

    def on_loop(self, answer: Callable[[RawRequest], RawResponse], request: RawRequest) -> RawResponse:
        """As `measured`, for a request that is quick."""
        response = answer(request)
        self._turn = turn = (self._turn + 1) % _LEARN_EVERY
        seconds = time.perf_counter() - request.arrived
        if turn == 0 or seconds >= INLINE_SECONDS:
            self._learn(request, response, seconds)
        return response

    def measured(self, answer: Callable[[RawRequest], RawResponse], request: RawRequest) -> RawResponse:
        """Answers, and remembers what that took."""
        began = time.perf_counter()
        response = answer(request)
        self._learn(request, response, time.perf_counter() - began)
        return response

    def _learn(self, request: RawRequest, response: RawResponse, seconds: float) -> None:
        key = request.path, request.headers.get("content-type"), len(request.body).bit_length()
        average = self._seconds.get(key)
        is_prediction = response.status == 200 and "X-Prediction-Id" in response.headers
        if not is_prediction and (average is None or seconds < average):
            return  # what is refused is quicker than what is answered, and its path is the caller's text
        if average is None:
            if len(self._seconds) >= _CLASSES:
                self._seconds.clear()
            self._seconds[key] = seconds
            return
        change = min(seconds, _MOST * average) - average
        self._seconds[key] = average + change * (_DOWN if change < 0 else _UP)
