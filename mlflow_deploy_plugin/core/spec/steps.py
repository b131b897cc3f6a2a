"""Steps: a user's Python file with code around the versions of an endpoint.

A spec contains the source of the file, so that whatever stores, compares, signs or
passes on a spec also covers the steps. Nothing in this module executes the source.
"""

import ast
from hashlib import sha256
from pathlib import Path

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.text_files import read_text

STEPS = "serve.steps"
"""The dotted name of the field."""
STEPS_FILE = "steps.py"
"""The name of the file in signatures, and its default name in messages."""
SIGNATURE_SUFFIX = ".sig"
MOST_STEPS_BYTES = 64 * 1024
_ARGUMENTS = {"before": ("request",), "after": ("outputs", "request")}


def is_steps_path(value: object) -> bool:
    """Return True for a path of steps; a source has a line break."""
    return isinstance(value, str) and value != "" and "\n" not in value


def read_steps(path: Path) -> dict[str, str]:
    """Return the source of a file on this machine as the field `steps`, its name as the
    field `file`, and the content of FILE.sig, if there is one, as the field
    `signature`.

    Raises InvalidConfig if a file cannot be read, or is not a file of steps.
    """
    fields = {"file": path.name}
    source = read_text(path, "serve.steps: the file")
    signature = path.with_name(path.name + SIGNATURE_SUFFIX)
    if signature.exists():
        fields["signature"] = read_text(signature, "serve.steps: the file")
    if "\n" not in source:
        source += "\n"
    return {**fields, "steps": check_steps(source, path.name)}


def check_steps(source: str, file: str = STEPS_FILE) -> str:
    """Return the source unchanged. Raises InvalidConfig if it is too large, is not
    Python, or does not define `before(request)` or `after(outputs, request)`.
    """
    if is_steps_path(source):
        raise InvalidConfig(
            f"serve.steps is the path {source[:100]!r}; a path is expected only in a spec "
            "file and in the options of a command, otherwise the source of the steps"
        )
    if (size := len(source.encode())) > MOST_STEPS_BYTES:
        raise InvalidConfig(
            f"serve.steps: the file has {size} bytes; at most {MOST_STEPS_BYTES} are allowed: move "
            "code into a package that is installed with the server"
        )
    try:
        body = ast.parse(source, file).body
        compile(source, file, "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None) or 1
        reason = getattr(error, "msg", None) or type(error).__name__
        raise InvalidConfig(f"serve.steps: {file} line {line}: {reason}") from None
    functions = [node for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    steps = [function for function in functions if function.name in _ARGUMENTS]
    for step in steps:
        expected = _ARGUMENTS[step.name]
        positional = len(step.args.posonlyargs) + len(step.args.args)
        if isinstance(step, ast.AsyncFunctionDef) or positional != len(expected):
            raise InvalidConfig(
                f"serve.steps: {file} line {step.lineno}: "
                f"`def {step.name}({', '.join(expected)})` is expected"
            )
    if not steps:
        raise InvalidConfig(
            "serve.steps: the file defines neither before(request) nor after(outputs, request)"
        )
    return source


def steps_digest(source: str) -> str:
    """Return the SHA-256 of the source in hexadecimal."""
    return sha256(source.encode()).hexdigest()
