"""`onnxserve audit`: the history of changes, and the documents about versions and
endpoints for reviewers.
"""

import asyncio
import json
import os
import sys
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlflow_deploy_plugin.cli.options import (
    POSITIVE,
    Commands,
    end_with_reader,
    flag,
    folder_option,
    format_option,
    model_argument,
    name_argument,
    opened_deployments,
    opened_store,
    option,
    optional_model_argument,
    optional_name_argument,
    path_option,
    reason_option,
    show_lines,
    show_progress,
    show_result,
    usage_errors,
)
from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.tabular.row_files import open_output

if TYPE_CHECKING:
    from mlflow_deploy_plugin.core.store.audit import AuditEvent, Login

_UNSHOWN = ("spec", "act")
_UNITS = {"every": " s", "seconds": " s"}


@click.group(cls=Commands)
def audit() -> None:
    """Show who changed what, and write documents for reviewers.

    \b
      onnxserve audit history flights
      onnxserve audit card models:/flight-delay/4
      onnxserve audit dossier flights --period 2026-Q4
      onnxserve audit verify-dossier flights-2026-Q4-dossier/dossier.json
    """


@audit.command()
@optional_name_argument
@option("--model MODEL", "Show only the events of this registered model. NAME may be omitted.")
@option("--limit COUNT", "Number of newest events.", type=POSITIVE, show_default="all")
@format_option(
    "Format: lines for people, a JSON array, or one JSON object per line with all details.",
    "text",
    "json",
    "jsonl",
)
@flag(
    "--verify",
    "Check the whole trail. The exit status is 1 if an event was changed, removed, inserted or "
    "moved, if no event is signed with one of the keys, or if the server reports a fault.",
)
@path_option(
    "--keys",
    "For --verify: PEM file with the public keys of MLflow's servers.",
    show_default="from MLflow's server",
)
@path_option(
    "--checkpoint",
    "For --verify: earlier checkpoint, which the trail must contain.",
    show_default="the newest of MLflow's server",
)
def history(
    name: str | None,
    model: str | None,
    limit: int | None,
    output: str,
    verify: bool,
    keys: Path | None,
    checkpoint: Path | None,
) -> None:
    """Show who changed what, when and why.

    The list contains the events of the endpoint NAME and of its models, oldest first.
    Without NAME, it contains all events. The history of a deleted endpoint is kept. In
    the text format, a promotion or a rollback is one entry. JSON also contains the
    events that belong to it, with the same `act`: the gate run, the moves in MLflow.

    \b
      onnxserve audit history --verify --keys server-keys.pem
    """
    from mlflow_deploy_plugin.core.registry.transitions import (
        event_as_json,
        event_history,
        without_step_events,
    )
    from mlflow_deploy_plugin.core.store.store import unknown_endpoint

    if verify:
        if name or model or limit:
            raise click.UsageError(
                "--verify checks the whole trail: omit NAME, --model and --limit"
            )
        _verify(output, keys, checkpoint)
        return
    end_with_reader()
    with opened_store() as store:
        if name and name not in store.names() and next(store.events(name), None) is None:
            raise unknown_endpoint(name, store.names(deleted=True))
        events = event_history(store, name, model, newest_first=limit is not None)
        if limit is not None:
            events = reversed([*islice(events, limit)])
        documents = map(event_as_json, events)
        if output == "jsonl":
            for document in documents:
                click.echo(document)
            return
        if output == "json":
            click.echo("[" + ",\n ".join(documents) + "]")
            return
        all_events = [*events]
    for event in without_step_events(all_events):
        show_lines(_event_lines(event))
    if not all_events:
        selected = model or name
        subject = f" of {selected}" if selected else ""
        show_progress(f"there are no events{subject}")


def _verify(output: str, keys_file: Path | None, checkpoint_file: Path | None) -> None:
    """Show whether the trail was changed, and exit with 1 if it was."""
    from mlflow_deploy_plugin.core.registry.audit_trail import (
        TrustedKeys,
        load_checkpoint,
        published_trail,
        stored_keys,
    )
    from mlflow_deploy_plugin.core.store.audit_keys import parse_keys
    from mlflow_deploy_plugin.core.store.audit_seal import verify_trail
    from mlflow_deploy_plugin.core.text_files import read_text

    trusted = None if keys_file and checkpoint_file else published_trail()
    with opened_store() as store:
        if keys_file:
            keys = parse_keys(read_text(keys_file, "the file of --keys"), str(keys_file))
            trusted = (trusted or TrustedKeys(keys, ""))._replace(keys=keys, origin=str(keys_file))
        trusted = trusted or stored_keys(store)
        checkpoint = trusted.checkpoint
        if checkpoint_file:
            text = read_text(checkpoint_file, "the file of --checkpoint")
            checkpoint = load_checkpoint(text, trusted.keys, str(checkpoint_file))
        state = verify_trail(store, trusted.keys, checkpoint)
    compared = f"of {checkpoint.size:,} events" if checkpoint else "none"
    lines = [
        *state.faults,
        *(f"the key {key} has signed no event" for key in state.unused_keys),
        *trusted.faults,
        f"{state.state}: {state.events:,} events, {state.signed:,} of them signed; "
        f"keys: {trusted.origin}; checkpoint: {compared}",
    ]
    reported = {"reported": trusted.faults}
    show_result("text" if output == "text" else "json", asdict(state) | reported, lines)
    if state.faults:
        show_progress(f"the audit trail was changed: {len(state.faults)} faults")
    elif state.state == "unsigned":
        show_progress("no event is signed, so everybody with the store could have written them")
    if state.state != "intact" or state.unused_keys or trusted.faults:
        sys.exit(1)


def _event_lines(event: "AuditEvent") -> Iterable[str]:
    """Yield an event with its reason and its details. A rollout step has no details."""
    subjects = (event.endpoint, event.model, event.version and f"version {event.version}")
    subject = " ".join(part for part in subjects if part)
    change = ""
    if event.before or event.after:
        before = event.before or "–"
        after = event.after or "–"
        change = f": {before} → {after}"
    yield f"{event.at:%Y-%m-%d %H:%M:%S}Z  {event.actor}  {event.action}  {subject}{change}"
    if event.why:
        yield f"    why: {event.why}"
    if event.action == "rollout.step":
        return
    details = [
        f"{key} {value}{_UNITS.get(key, '')}"
        for key, value in event.detail.items()
        if key not in _UNSHOWN and value != "" and isinstance(value, str | int | float)
    ]
    if details:
        yield f"    {', '.join(details)}"


@audit.command()
@reason_option("Reason for the audit trail.", default=None, required=True)
@path_option("--dossier", "dossier.json in which missing events are looked for.", multiple=True)
def adopt(why: str, dossier: tuple[Path, ...]) -> None:
    """Accept the audit trail in the store as the trail of this server.

    MLflow's server does not start if the store lacks events that the server has
    recorded beside its key, or has a checkpoint of a key that it does not know, for
    example after the restore of a backup. Run this command with the settings of the
    server, as its user. It names how many events are missing, and which of them are
    waiting beside the key or are in a --dossier. Each card and dossier then shows this
    event.

    The event has your name in MLflow if a server at MLFLOW_TRACKING_URI answers, or if
    the accounts of the server's basic auth (MLFLOW_AUTH_CONFIG_PATH) have
    MLFLOW_TRACKING_USERNAME with MLFLOW_TRACKING_PASSWORD. Otherwise it has
    user@machine.

    \b
      onnxserve audit adopt --why 'backup of 3 November restored'
    """
    from mlflow_deploy_plugin.core.settings import load_settings
    from mlflow_deploy_plugin.core.store.audit_seal import adopt_trail
    from mlflow_deploy_plugin.core.store.database import open_server_store
    from mlflow_deploy_plugin.promote.evidence.proof import included_statements

    settings = load_settings()
    if not settings.audit_key_path.exists():
        raise InvalidConfig(
            "this command needs the key of MLflow's server: run it with the server's "
            "ONNXSERVE_AUDIT_KEY_FILE or ONNXSERVE_HOME"
        )

    with closing(open_server_store(settings, _known_person)) as store:
        person = store.user
        keys = store.keys
        assert keys is not None
        found = {file: included_statements(file, keys) for file in dossier}
        adoption = adopt_trail(store, why)
    if not adoption.fault:
        show_lines(["there was nothing to accept"])
        return
    missing = adoption.missing
    lines = [f"accepted by {person}: {adoption.fault}"]
    if missing:
        lines.append(f"missing: {len(missing):,} events, from {missing[0]} to {missing[-1]}")
    if adoption.waiting:
        lines.append(f"waiting beside the key: {adoption.waiting:,} events, which are stored next")
    if adoption.log:
        lines.append(
            f"log: {adoption.log.text}; a witness answers 404 until its owner accepts this key"
        )
    for file, statements in found.items():
        for place, statement in statements.items():
            if place in missing:
                lines.append(f"in {file}: {statement}")
    show_lines(lines)


def _known_person() -> "Login":
    """Return the login. The server that checks it does not start, so its accounts
    are asked.
    """
    from sqlalchemy import create_engine, make_url, text
    from sqlalchemy.exc import DBAPIError

    from mlflow_deploy_plugin.core.registry.connection import find_login
    from mlflow_deploy_plugin.core.store.audit import Login
    from mlflow_deploy_plugin.core.store.transactions import redacted_url

    login = find_login()
    name = os.environ.get("MLFLOW_TRACKING_USERNAME", "")
    if login.user or not name:
        return login
    from mlflow.server.auth.config import read_auth_config
    from werkzeug.security import check_password_hash

    address = make_url(read_auth_config().database_uri)
    read_only = address
    if address.get_backend_name() == "sqlite":  # MLflow's own store would make a missing file.
        file = Path(address.database or "").absolute().as_uri()
        read_only = address.set(database=file, query={"mode": "ro", "uri": "true"})
    query = text("SELECT password_hash FROM users WHERE username = :name")
    stored = None
    with suppress(DBAPIError), create_engine(read_only).connect() as accounts:
        stored = accounts.scalar(query, {"name": name})
    if not check_password_hash(stored or "", os.environ.get("MLFLOW_TRACKING_PASSWORD", "")):
        raise InvalidConfig(
            f"the database {redacted_url(address)} has no account {name!r} with "
            "MLFLOW_TRACKING_PASSWORD: run this command with the server's "
            "MLFLOW_AUTH_CONFIG_PATH and in its folder, or unset MLFLOW_TRACKING_USERNAME if "
            "its login is not MLflow's basic auth"
        )
    return Login(name)


@audit.command()
@model_argument
@folder_option("--folder", "Folder.", show_default="NAME-VERSION-card")
def card(model_uri: str, folder: Path | None) -> None:
    """Write the model card of a version.

    The files model_card.html and model_card.json have the recorded facts about the
    version, from its purpose to its monitors. Each sentence has a link to its run, tag
    or audit event.

    \b
      onnxserve audit card models:/flight-delay/4
    """
    from mlflow_deploy_plugin.promote.evidence.card import make_card

    with opened_store() as store:
        model_card = make_card(model_uri, store)
    folder = folder or Path(f"{model_card.name}-{model_card.version}-card")
    model_card.write(folder)
    click.echo(
        f"{model_card.name} version {model_card.version}: {folder}/model_card.html, "
        f"{folder}/model_card.json"
    )


@audit.command()
@optional_model_argument
@option("--endpoint NAME", "Endpoint whose loaded versions are listed.", default="")
@option("-o --output-path FILE", "File; - is standard output.", default="-")
def bom(model_uri: str | None, endpoint: str, output_path: str) -> None:
    """Write the bill of materials of a version or an endpoint.

    The document is a CycloneDX 1.6 ML-BOM in JSON: the version with the digests of its
    files, its datasets, packages, parity, metrics, gate, tags and licence (the tag
    `license` of the version or the model). With --endpoint, it lists the versions that
    the workers of the endpoint have loaded now.

    \b
      onnxserve audit bom models:/flight-delay/4
      onnxserve audit bom --endpoint flights -o flights.cdx.json
    """
    from mlflow_deploy_plugin.promote.evidence.bom import endpoint_bom, version_bom

    if (model_uri is None) == (not endpoint):
        raise click.UsageError("specify either MODEL or --endpoint NAME")
    if model_uri is None:
        with opened_deployments() as deployments:
            document = endpoint_bom(deployments.get_endpoint(endpoint))
    else:
        document = version_bom(model_uri)
    with open_output(output_path, sys.stdout.buffer) as file:
        file.write(f"{json.dumps(document, indent=2)}\n".encode())


@audit.command()
@name_argument
@option(
    "--period PERIOD",
    "Quarter (2026-Q4), month (2026-11), year (2026) or START/END, in UTC.",
    required=True,
)
@option(
    "--framework",
    "Order dossier.html by the articles of a law or standard, with those that are open.",
    type=click.Choice(["eu-ai-act", "sr-11-7", "iso-42001"]),
)
@folder_option("--folder", "Folder.", show_default="NAME-PERIOD-dossier")
def dossier(name: str, period: str, framework: str | None, folder: Path | None) -> None:
    """Write the record of the endpoint NAME in a period for a reviewer.

    The files dossier.html and dossier.json list the versions that served, the requests
    and failures, the promotions with their approvals and gates, signatures, the
    verdicts of monitors, alarms and responses, and the state of the audit trail. Each
    sentence has a link to its run, event or report.

    \b
      onnxserve audit dossier flights --period 2026-Q4
      onnxserve audit dossier flights --period 2026-Q4 --framework eu-ai-act
      onnxserve audit dossier flights --period 2026-11-01/2026-11-15 \\
          --folder review
    """
    from mlflow_deploy_plugin.core.settings import load_settings
    from mlflow_deploy_plugin.promote.evidence.dossier import make_dossier, parse_period
    from mlflow_deploy_plugin.promote.evidence.proof import obtain_proof

    with opened_store() as store:
        with usage_errors():
            window = parse_period(period, store.now())
        made = make_dossier(store, name, window, load_settings().inference_log)
        proof = obtain_proof(store, made)
    folder = folder or Path(f"{name}-{period.replace('/', '-')}-dossier")
    made.write(folder, proof, framework)
    click.echo(f"{name} in {period}: {folder}/dossier.html, {folder}/dossier.json")
    if not proof["signed_by"]:
        show_progress("the dossier is not signed: MLflow's server does not sign audit events")


@audit.command()
@click.argument("file", type=click.Path(path_type=Path))
@path_option("--keys", "PEM file with the public keys of MLflow's servers.", show_default="in FILE")
@option(
    "--witness KEY",
    "Key of a witness that must have signed the checkpoint (NAME+ID+KEY).",
    multiple=True,
)
def verify_dossier(file: Path, keys: Path | None, witness: tuple[str, ...]) -> None:
    """Check the dossier.json FILE without the network, the store and MLflow's server.

    The signature, the events, their places in the tree of the checkpoint, and the
    statements about events are checked. The exit status is 1 if there is a fault. Get
    the keys in another way than FILE: its maker may have exchanged them.

    \b
      onnxserve audit verify-dossier dossier.json --keys server-keys.pem \\
          --witness witness.example/1+d34caeba+BAE5…
    """
    from mlflow_deploy_plugin.core.store.checkpoints import parse_signer
    from mlflow_deploy_plugin.promote.evidence.proof import check_dossier

    faults, summary = check_dossier(file, keys, [parse_signer(key, "--witness") for key in witness])
    show_lines([*faults, summary])
    if faults:
        show_progress(f"the dossier is not proven: {len(faults)} faults")
        sys.exit(1)


@audit.command()
@click.argument("folder", type=click.Path(path_type=Path))
def export(folder: Path) -> None:
    """Write the log of the audit trail into FOLDER, for other people's verifiers.

    The files are those of https://c2sp.org/tlog-tiles. They have digests, and no names.
    Line N of events.jsonl is the event N, whose SHA-256 is in the entry N of the log. A
    FOLDER with an earlier export is extended if the trail still contains it.

    \b
      onnxserve audit export public/log
    """
    from mlflow_deploy_plugin.core.registry.audit_trail import published_trail, stored_keys
    from mlflow_deploy_plugin.promote.evidence.tiles import write_tiles

    with opened_store() as store:
        trusted = published_trail() or stored_keys(store)
        checkpoint = write_tiles(store, trusted.keys, trusted.checkpoint, folder)
    click.echo(f"{folder}: {checkpoint.size:,} events of {checkpoint.origin}")


@audit.command()
@folder_option("--folder", "Folder for the key and the last checkpoints.", required=True)
@option("--name NAME", "Name of a new key, such as witness.example/1; it is kept.", default="")
@option("--log VKEY", "logs", "Key of a log. May be repeated.", multiple=True, required=True)
@option("--host HOST", "Address to listen on.", default="127.0.0.1")
@option("--port PORT", "Port to listen on.", type=click.IntRange(1, 65535), default=7380)
def witness(folder: Path, name: str, logs: tuple[str, ...], host: str, port: int) -> None:
    """Cosign the checkpoints of audit trails until stopped (c2sp.org/tlog-witness).

    A log that changes or removes an event gets no further cosignature. The output is
    the key of the witness, for URL#VKEY in ONNXSERVE_AUDIT_WITNESSES of the log's
    server. Keep the folder. For other machines, put a proxy with TLS before the port.

    \b
      onnxserve audit witness --folder witness --name witness.example/1 \\
          --log 'onnxserve/STORE/KEYID+d34caeba+AYE5...'
    """
    from mlflow_deploy_plugin.core.logs import configure_logging
    from mlflow_deploy_plugin.core.settings import load_settings
    from mlflow_deploy_plugin.core.statedir.files import claim_state_dir
    from mlflow_deploy_plugin.promote.evidence.witness import Witness, serve

    configure_logging(load_settings().log_format, "witness")
    with claim_state_dir(folder):
        made = Witness(folder, name, logs)
        asyncio.run(serve(made, host, port, lambda: show_lines([made.signer.text])))
