"""Statements: sentences with a link to the record that each is made from, and the files
of a document that consists of statements.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.registry.connection import redact_credentials
from mlflow_deploy_plugin.core.statedir.files import write_atomically
from mlflow_deploy_plugin.core.store.audit import AuditEvent
from mlflow_deploy_plugin.core.store.tables import Json
from mlflow_deploy_plugin.promote.gate.verdict import report_templates

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SourceKind = Literal["registry", "run", "tag", "event", "log", "alert", "trail"]

_MARKS = str.maketrans("“”„‟", '""""')
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Statement:
    """A sentence with the name and the page of its source. `url` is empty if MLflow's
    server does not have the page.
    """

    text: str
    kind: SourceKind
    source: str
    url: str


Statements = Iterator[Statement]
Sections = Mapping[str, Sequence[Statement]]


def statement_of(text: str, kind: SourceKind, source: str, url: str) -> Statement:
    """Return a statement with one line of text that ends with a period, and without
    credentials.
    """
    sentence = redact_credentials(one_line(text)).rstrip(":. ") + "."
    # A tag may have any address.
    page = redact_credentials(url) if url.startswith(("http://", "https://")) else ""
    return Statement(sentence, kind, source, page)


def quoted(text: str) -> str:
    """Return the text of a person as a quotation, whose end is not in the text."""
    return f"“{text.translate(_MARKS)}”"


def signature_note(is_signed: bool) -> str:
    """Return the end of a clause about an event that anybody may have written into the
    store; empty for an event that MLflow's server has signed.
    """
    return "" if is_signed else ", not signed by MLflow's server"


def event_statement(event: AuditEvent, page: str, is_signed: bool) -> Statement:
    """Return a statement about an audit event that the console shows at `page`. The
    words never change, because the statements of a dossier are compared with them.
    """
    after = event.after or event.detail.get("to")
    change = " → ".join(quoted(str(value)) for value in (event.before, after) if value)
    text = f"The action of {event.actor} on {event.at:%Y-%m-%d %H:%M} UTC was {event.action}"
    if change:
        text += f" ({change})"
    if event.version:
        text += f", of {event.model} version {event.version}"
    if event.endpoint:
        text += f", on the endpoint {event.endpoint}"
    verdict = event.detail.get("verdict") or event.detail.get("gate")
    if verdict:
        text += f", with the gate {verdict}"
    # An approval has the digest of the report in place of its address.
    reports = (str(event.detail.get(name, "")) for name in ("report_digest", "report"))
    digest = next(filter(_DIGEST.fullmatch, reports), "")
    if digest:
        text += f", on the report sha256 {digest[:12]}"
    text += signature_note(is_signed)
    if event.why:
        text += f", with the reason {quoted(event.why)}"
    return statement_of(text, "event", f"{event.action} {event.at.isoformat()}", page)


def group_statements(
    sections: Mapping[str, Iterable[str]],
    statements: Callable[[str], Iterable[Statement]],
) -> dict[str, Sections]:
    """Return the statements of each section, by group. Sections without statements are
    left out.
    """
    groups: dict[str, Sections] = {}
    for group, names in sections.items():
        by_section = {name: [*statements(name)] for name in names}
        groups[group] = {name: found for name, found in by_section.items() if found}
    return groups


def document_content(document: "DataclassInstance") -> Json:
    """Return the document as it is written to JSON."""
    content: Json = json.loads(json.dumps(asdict(document), default=datetime.isoformat))
    return content


def write_document(
    document: "DataclassInstance",
    folder: Path,
    name: str,
    title: str,
    groups: Mapping[str, Iterable[str]],
    proof: Json | None = None,
    framework: Json | None = None,
) -> None:
    """Write `name`.html with the sections of `groups`, in the order of the articles of
    a `framework` (`frameworks.yaml`), and `name`.json with the document and its
    `proof`. Raises InvalidConfig if the folder cannot be written.
    """
    content = document_content(document)
    template = report_templates(Path(__file__).parent).get_template("statements.html")
    page = template.render(
        title=title, document=content, proof=proof, groups=groups, framework=framework
    )
    if proof:
        content["proof"] = proof
    try:
        write_atomically(folder / f"{name}.html", page.encode())
        write_atomically(folder / f"{name}.json", f"{json.dumps(content, indent=2)}\n".encode())
    except OSError as error:
        raise InvalidConfig(f"the folder {folder} cannot be written: {error.strerror}") from None
