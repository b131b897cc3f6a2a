"""Generate `docs/errors.md`: the messages of the package's errors, with their causes
and remedies.

Run `python docs/make_errors.py` after changing a message. The messages are read from
the places that create the errors, and the causes from the docstrings of the error
classes.
"""

import ast
import inspect
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlflow_deploy_plugin.core import errors

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mlflow_deploy_plugin"
PAGE = Path(__file__).with_name("errors.md")

HEAD = """# Errors

Made by `python docs/make_errors.py` from the code; a test holds it equal to the code.

A command prints an error as one line on stderr, and exits with status 1. \
A server answers with the HTTP status of
the error, the code of MLflow (`error_code`) and the `message`. \
`…` stands for a name, a number or a text from your
input. \
A remedy that ends a message is on the line below it.
Messages that only state which option, field or request is accepted are not listed. \
The traceback of an internal error
is only in the log: search the log for the request id of the response.
"""

SELF_EXPLANATORY = frozenset({"InvalidConfig", "InvalidRequest"})
"""The classes whose messages state which input is accepted. Only those of their
messages that end with a remedy are listed.
"""

REMEDIES = {
    "InvalidRequest": (
        "Correct the request. The page `/docs` of the server has an example that the model accepts."
    ),
    "OutOfRange": (
        "Correct the value, or set `guard.then` to `flag` ([guards](observe.md#guards))."
    ),
    "UnsupportedMediaType": (
        "Set the `Content-Type`, or the `Content-Encoding`, to a type in the message."
    ),
    "BodyTooLarge": "Send fewer rows per request, or raise the [limit](server-settings.md#limits).",
    "TargetTooLong": "Move parameters from the query to the body.",
    "HeadersTooLarge": "Remove header fields, or large cookies, that a proxy adds.",
    "RequestTimeout": (
        "Send the request faster, or raise the time [limits](server-settings.md#limits)."
    ),
    "InvalidConfig": "Correct the option, field or setting ([fields and settings](reference.md)).",
    "NotFound": "Correct the name. `onnxserve list` shows the endpoints.",
    "AlreadyExists": "Use another name, or update what exists.",
    "NotInstalled": "Install the extra that the message names ([install](install.md)).",
    "NotReady": (
        "Send the request again later. `onnxserve logs NAME` shows what the server waits for."
    ),
    "DeviceMemoryFull": (
        "Send fewer rows per request, or lower `server.max_batch_size` ([GPUs](gpu.md#refusals))."
    ),
    "TooManyRequests": "Retry after `Retry-After`, or raise the [limits](server-settings.md).",
    "DeadlineExceeded": (
        "Add [workers or pods](kubernetes.md#sizing), or raise the timeout of caller or server."
    ),
    "ModelError": "See [wrap a model](wrap.md).",
    "ParityError": (
        "Look at the rows in the message. [Wrap](wrap.md) describes the proof and its tolerances."
    ),
    "InvalidArtifact": "Log the model again.",
    "InferenceError": "Correct the input, for example a category that the model has not seen.",
    "Unauthenticated": "Send a valid [key or token](server-settings.md#api-keys).",
    "ScopeMissing": (
        "Use a [key](server-settings.md#api-keys) or an [account](console.md#logins) with this "
        "permission."
    ),
    "GateRefused": "Run `onnxserve gate`, which lists the failed checks ([the gate](gate.md)).",
    "SignatureRefused": (
        "Restore the signed files, or run `onnxserve sign` ([signatures](promote.md#signatures))."
    ),
    "CallerRefused": "Send the request from a program, or from a page of the server.",
    "CodeRefused": (
        "Consent to the model's own code only if you trust its author ([pyfuncs](pyfunc.md))."
    ),
    "RuntimeMissing": "Install the extra `cpu` or `gpu` ([install](install.md)).",
    "DeviceUnavailable": "Check the driver and the build of ONNX Runtime ([GPUs](gpu.md)).",
    "RegistryUnavailable": "Check that MLflow's server answers at `MLFLOW_TRACKING_URI`.",
    "RegistryRefused": "Check the account and its permissions in MLflow.",
    "StoreUnavailable": "Check the database at `ONNXSERVE_STORE_URI` ([operations](operate.md)).",
    "DeploymentFailed": "`onnxserve logs NAME` shows the log of the server.",
    "OnnxserveError": "The message names the place to look at.",
}
"""The name of an error class → the general remedy of its errors. A class inherits the
remedy of its base.
"""

IMPERATIVES = frozenset(
    {
        "add", "call", "change", "choose", "convert", "correct", "create", "delete", "export",
        "fit", "give", "install", "keep", "load", "log", "lower", "move", "name", "pass", "pip",
        "put", "raise", "remove", "rename", "repeat", "retry", "run", "save", "select", "send",
        "set", "shorten", "specify", "split", "start", "stop", "try", "uninstall", "unset",
        "update", "upgrade", "use", "wait", "wrap", "write",
    },
)  # fmt: skip
"""The words that begin the remedy at the end of a message."""

LONGEST_PROBLEM = 90
"""Longer messages are cut after a word, because the beginning is enough to find them.
"""

FEWEST_WORDS = 5
"""A message with fewer fixed words cannot be found by a search, and is left out."""


@dataclass(frozen=True, order=True)
class Message:
    """A message of an error class.

    Attributes:
        error: the name of the class.
        problem: the message up to its remedy, with `…` for variable parts.
        remedy: the end of the message that names the remedy; empty if the message has
            none.
    """

    error: str
    problem: str
    remedy: str


def page() -> str:
    """Return the page as Markdown."""
    by_error: dict[str, set[Message]] = defaultdict(set)
    for path in sorted(PACKAGE.rglob("*.py")):
        for message in _messages(path):
            if message.remedy or message.error not in SELF_EXPLANATORY:
                by_error[message.error].add(message)
    return HEAD + "".join(_section(name, sorted(by_error[name])) for name in sorted(by_error))


def _messages(path: Path) -> Iterator[Message]:
    """Yield the messages of the errors that a module creates with a literal text."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args):
            continue
        error = getattr(errors, node.func.id, None)
        if not (inspect.isclass(error) and issubclass(error, errors.OnnxserveError)):
            continue
        text = _fixed_text(node.args[0])
        if sum(word.strip("…,:;()").isalpha() for word in text.split()) >= FEWEST_WORDS:
            yield Message(error.__name__, *_problem_and_remedy(text))


def _fixed_text(node: ast.expr) -> str:
    """Return a literal text with `…` for its variable parts; empty if the expression is
    not a literal text.
    """
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        parts = [str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values]
        return " ".join("".join(parts).split())
    return ""


def _problem_and_remedy(text: str) -> tuple[str, str]:
    for separator in (": ", "; "):
        problem, _, remedy = text.rpartition(separator)
        first = remedy.strip("`").split(" ")[0]
        if problem and first in IMPERATIVES:
            return problem, remedy
    return text, ""


def _section(name: str, messages: list[Message]) -> str:
    """Return the messages of an error class, below its cause and its remedy."""
    error = getattr(errors, name)
    cause = (inspect.getdoc(error) or "").split("\n\n")[0].replace("\n", " ")
    remedy = next(REMEDIES[base.__name__] for base in error.__mro__ if base.__name__ in REMEDIES)
    head = (
        "\n"
        f"## {name}\n"
        "\n"
        f"HTTP status {error.http_status}, `{error.error_code}`. {cause} {remedy}\n"
        "\n"
    )
    return head + "".join(
        f"### {_code(_shortened(message.problem))}\n"
        + (f"{_code(message.remedy)}\n" if message.remedy else "")
        for message in messages
    )


def _shortened(problem: str) -> str:
    if len(problem) <= LONGEST_PROBLEM:
        return problem
    return problem[:LONGEST_PROBLEM].rpartition(" ")[0].rstrip(",:;.") + " …"


def _code(text: str) -> str:
    return "`" + text.replace("`", "'") + "`"


if __name__ == "__main__":
    PAGE.write_text(page())
