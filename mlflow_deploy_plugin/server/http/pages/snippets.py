"""Code that sends the example of an endpoint: in a shell, in Python, and by Triton's client."""

import json
import shlex
from dataclasses import dataclass
from typing import Any

from mlflow_deploy_plugin.runtime import Schema
from mlflow_deploy_plugin.server.http.openapi.examples import Example, invocations_example, v2_example

_NUMPY = {
    "BOOL": "bool_",
    "BYTES": "object_",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    **{f"INT{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}


@dataclass(frozen=True, slots=True)
class Snippet:
    """A piece of code that runs as it is."""

    title: str
    code: str


def snippets(base: str, path: str, endpoint: str, schema: Schema, example: Example) -> list[Snippet]:
    """Return code that asks for the example's predictions.

    Args:
        base: the server's address, as http://127.0.0.1:8080.
        path: the endpoint's `/invocations`.
    """
    body = invocations_example(schema, example)
    if not body:
        return []
    url, data = base + path, shlex.quote(json.dumps(body, ensure_ascii=False))
    curl = f"curl {shlex.quote(url)} \\\n  -H 'Content-Type: application/json' \\\n  -d {data}"
    python = f"import requests\n\nbody = {body!r}\nresponse = requests.post({url!r}, json=body, timeout=30)\n"
    found = [
        Snippet("curl", curl),
        Snippet("Python, requests", python + 'print(response.json()["predictions"])'),
    ]
    if tensors := v2_example(schema, example):
        found.append(Snippet("Python, tritonclient", _triton(base, endpoint, tensors)))
    return found


def _triton(base: str, endpoint: str, body: dict[str, Any]) -> str:
    """Return code for tritonclient[http]; only names, shapes and values differ between models."""
    lines = ["import numpy as np", "from tritonclient.http import InferenceServerClient, InferInput", "", "inputs = []"]
    for entry in body["inputs"]:
        values = f"np.array({_python(entry['data'])}, dtype=np.{_NUMPY.get(entry['datatype'], 'float32')})"
        lines += [
            f"tensor = InferInput({entry['name']!r}, {entry['shape']}, {entry['datatype']!r})",
            f"tensor.set_data_from_numpy({values})",
            "inputs.append(tensor)",
        ]
    host = base.partition("://")[2]
    is_secure = ", ssl=True" if base.startswith("https:") else ""
    lines += [
        "",
        f"client = InferenceServerClient({host!r}{is_secure})",
        f"answer = client.infer({endpoint!r}, inputs)",
        'for output in answer.get_response()["outputs"]:',
        '    print(output["name"], answer.as_numpy(output["name"]))',
    ]
    return "\n".join(lines)


def _python(values: Any) -> str:
    """Return lists as Python writes them, with null as NaN for floating point."""
    return repr(values).replace("None", "np.nan") if not _has_text(values) else repr(values)


def _has_text(values: Any) -> bool:
    return isinstance(values, str) or (isinstance(values, list) and any(map(_has_text, values)))
