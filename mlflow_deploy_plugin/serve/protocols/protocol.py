"""The entry of a prediction protocol: its decoder, its paths, and its description.

The routes (`serve/http/routes.py`), the plans (`serve/http/plan.py`), the OpenAPI
document and the tests follow from the entries in `table.py`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from mlflow_deploy_plugin.core.mlmodel import PYTHON_FUNCTION
from mlflow_deploy_plugin.serve.protocols.content import JSON
from mlflow_deploy_plugin.serve.protocols.examples import Example
from mlflow_deploy_plugin.serve.protocols.schemas import JsonSchema
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact
from mlflow_deploy_plugin.serve.runtime.feeds import Array, Feeds
from mlflow_deploy_plugin.serve.runtime.model import OpaqueBody
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema
from mlflow_deploy_plugin.serve.variants import ServedVariant

_EMPTY: Mapping[str, Any] = MappingProxyType({})
_NAMED = r"/(endpoints|(v[12]/)?models)/"
_PATH = re.compile(
    rf"(?=.)({_NAMED}{{endpoint}}(\[/versions/{{version}}(\|/labels/{{label}})?\])?|(?!{_NAMED}))"
    r"([/:][\w.-]+)*",
    re.ASCII,
)


@dataclass(slots=True)
class InferResponse:
    """The outputs of exactly one version.

    `prediction_id` is unique, because feedback is joined to predictions by this id.
    `body` is the encoded response to a request with a `body`, otherwise empty.
    `is_cached` is None if the outputs are not cacheable. `outside` has the columns
    of each row that are outside of the training rows, [N] objects.
    """

    id: str
    prediction_id: str
    outputs: dict[str, Array]
    body: bytes = b""
    is_cached: bool | None = None
    outside: Array | None = None


class EncodedResponse(NamedTuple):
    body: bytes
    content_type: str = JSON
    headers: Mapping[str, str] = _EMPTY


class DecodedRequest(NamedTuple):
    """The contents of a request's body, and the function that encodes its response.

    `id` may be empty. For a pyfunc, `body` is set instead of `feeds`. `parameters` may
    have `timeout` in microseconds.
    """

    feeds: Feeds
    encode: Callable[[ServedVariant, InferResponse], EncodedResponse]
    id: str = ""
    body: OpaqueBody | None = None
    parameters: Mapping[str, Any] = _EMPTY


Decode = Callable[[Mapping[str, str], bytes, ServedVariant, int], DecodedRequest]
"""A function of the headers (names in lower case), the body, the variant, and the
maximum size of a decompressed table in bytes.
"""


@dataclass(frozen=True)
class RequestBody:
    """A request body whose form depends on the model.

    The schema's name is the endpoint's name, then `name`. `example` returns "" if the
    form cannot represent an example.
    """

    name: str
    schema: Callable[[Schema], JsonSchema]
    example: Callable[[Schema, Example], Any]


@dataclass(frozen=True)
class ResponseBody:
    """A response body whose form depends on the model; `name` has the same meaning as
    in `RequestBody`.
    """

    name: str
    schema: Callable[[Artifact], JsonSchema]


Bodies = Mapping[str, JsonSchema | RequestBody | ResponseBody]
"""The bodies by media type."""


@dataclass(frozen=True)
class Description:
    """A GET route of a protocol that describes an endpoint.

    `describe` returns the JSON object for a `Server` and the names in the path, which
    are the keywords `endpoint`, `version` and `label`.
    """

    path: str
    describe: Callable[..., Mapping[str, object]]
    summary: str
    response: Bodies


@dataclass(frozen=True, eq=False)
class Protocol:
    """A prediction protocol. Raises ValueError if a path does not have the form of a
    protocol's path.

    Attributes:
        name: the label in metrics.
        paths: the paths of its POST routes. A part in brackets is optional. Without
            `{endpoint}`, the default endpoint answers.
        summary: one line for OpenAPI.
        request: the bodies that the protocol accepts.
        response: the bodies that the protocol returns.
        tag: the group of the routes in the OpenAPI document.
        takes_pyfuncs: True if a version without an ONNX form answers.
        descriptions: its GET routes.
    """

    name: str
    decode: Decode
    paths: tuple[str, ...] = ()
    summary: str = ""
    request: Bodies = field(default_factory=dict)
    response: Bodies = field(default_factory=dict)
    tag: str = "Predictions"
    takes_pyfuncs: bool = False
    descriptions: tuple[Description, ...] = ()

    def __post_init__(self) -> None:
        for path in (*self.paths, *(description.path for description in self.descriptions)):
            if not _PATH.fullmatch(path):
                raise ValueError(
                    f"{path!r} is not /WORD, /WORD/WORD, /endpoints/{{endpoint}}/WORD or "
                    "/v1/models/{endpoint}:WORD"
                )

    def accepts(self, artifact: Artifact) -> bool:
        return self.takes_pyfuncs or artifact.flavor != PYTHON_FUNCTION
