"""The contents of a stored folder, as plain values: `write.py` records them, and
`test_stored.py` compares them.
"""

import json
import sqlite3
from dataclasses import asdict
from datetime import datetime

import mlflow
import numpy as np
import pandas as pd

import onnxserve
from mlflow_deploy_plugin.core.statedir.files import (
    CONTROL,
    FOLLOWED,
    WANTED,
    read_state,
    write_state,
)
from mlflow_deploy_plugin.core.statedir.models import (
    Control,
    Followed,
    Wanted,
    WantedEndpoint,
    WantedVariant,
)
from mlflow_deploy_plugin.core.store.alerts import Alerts, Silences
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.keys import ApiKeys
from mlflow_deploy_plugin.core.store.monitor_tables import Monitors
from mlflow_deploy_plugin.core.store.retrainings import Retrainings
from mlflow_deploy_plugin.core.store.served_files import MOVES, stay_of
from mlflow_deploy_plugin.promote.gate.approvals import promotion_requests
from mlflow_deploy_plugin.promote.rollouts import plan as rollout_plan
from mlflow_deploy_plugin.promote.rollouts.state_machine import progress_of
from mlflow_deploy_plugin.serve.inference_log.log_reader import open_log
from mlflow_deploy_plugin.serve.inference_log.windows import Window
from mlflow_deploy_plugin.ship.deployments.unapproved import answers_of
from mlflow_deploy_plugin.watch.drift.references.rows import load_training_rows
from mlflow_deploy_plugin.watch.retraining import plan as retraining_plan

ENDPOINT = "flights"
MODEL = "flight-delay"
WRITTEN = {
    "endpoint": ("name", "target", "created_at", "updated_at", "rows_since"),
    "event": ("at", "actor", "action", "endpoint", "model", "version", "before", "after"),
    "request": ("model", "version", "to", "requested_by", "verdict", "report_digest"),
    "rollout": ("id", "endpoint", "state", "step", "revision", "figures", "created_at", "ended_at"),
    "window": (
        "monitor",
        "start",
        "end",
        "revision",
        "by_hand",
        "state",
        "outcome",
        "rows",
        "log_rows",
        "log_digest",
    ),
    "monitor": (
        "endpoint",
        "monitor",
        "paused",
        "paused_by",
        "made_up_to",
        "consecutive",
        "note_kind",
        "baseline",
    ),
    "alert": (
        "fingerprint",
        "endpoint",
        "monitor",
        "state",
        "first_at",
        "last_at",
        "told_at",
        "count",
    ),
    "silence": ("endpoint", "monitor", "until", "actor", "created_at"),
    "key": (
        "name",
        "digest",
        "scopes",
        "endpoints",
        "actor",
        "created_at",
        "expires_at",
        "revoked_at",
        "limits",
    ),
    "retraining": (
        "endpoint",
        "monitor",
        "model",
        "state",
        "run_id",
        "version",
        "rollout_id",
        "created_at",
        "ended_at",
    ),
}
"""The attributes that are compared, by the kind of object."""


def model_contents(folder, rows):
    """Return the answers of both loaders of the model for these columns, and the values
    that are stored with it.
    """
    frame = pd.DataFrame(rows)
    pyfunc = mlflow.pyfunc.load_model(str(folder))
    model = onnxserve.load_model(str(folder))
    feeds = model.schema.from_columns({name: np.asarray(values) for name, values in rows.items()})
    outputs = model.run(feeds)
    return {
        "framework": model.artifact.framework,
        "classes": model.artifact.classes,
        "parity": model.artifact.parity,
        "pyfunc": np.asarray(pyfunc.predict(frame)),
        "outputs": outputs,
        "example_rows": len(pyfunc.input_example),
        "inputs": pyfunc.metadata.get_input_schema().to_dict(),
    }


def reference_contents(folder, state_dir):
    """Return the reference sample of the model. `state_dir` becomes the state folder of
    a server of this model.
    """
    variant = WantedVariant(model_uri=str(folder), model=MODEL, version="1", folder=folder)
    write_state(
        state_dir / WANTED,
        Wanted(endpoints={ENDPOINT: WantedEndpoint(variants={ENDPOINT: variant})}),
    )
    table = load_training_rows(state_dir, MODEL, "1", state_dir / "cache").table
    return {
        "rows": len(table),
        "columns": {name: str(table.schema.field(name).type) for name in table.column_names},
    }


def load_dump(dump, database):
    """Load an SQL dump into a new SQLite file, and return its URL."""
    connection = sqlite3.connect(database)
    connection.executescript(dump.read_text())
    connection.close()
    return f"sqlite:///{database}"


def store_contents(url, now):
    """Return the contents of a store at this time of its clock."""
    store = open_store(url, lambda: now)
    try:
        return {
            "unreadable": [endpoint.name for endpoint in store.unreadable()],
            "endpoints": _endpoints(store),
            "events": _written("event", store.events()),
            "requests": _requests(store),
            "served_files": {
                version: stay_of(store.counted_events(MODEL, MOVES), version, "@champion").files
                for version in ("1", "2", "3")
            },
            "rollouts": _rollouts(store),
            "monitors": _written("monitor", Monitors(store).states()),
            "windows": _windows(store),
            "alerts": _written("alert", Alerts(store).recent()),
            "silences": _written("silence", Silences(store).active()),
            "keys": _written("key", ApiKeys(store).created()),
            "valid_keys": [key.name for key in ApiKeys(store).valid()],
            "retrainings": _retrainings(store),
            "changes": store.recent_changes(),
        }
    finally:
        store.close()


def _written(kind, objects):
    return [{name: getattr(entry, name) for name in WRITTEN[kind]} for entry in objects]


def _endpoints(store):
    entries = store.endpoints()
    written = _written("endpoint", entries)
    for row, entry in zip(written, entries, strict=True):
        row["variants"] = {name: variant.model for name, variant in entry.spec.variants.items()}
        row["unapproved"] = [asdict(answer) for answer in answers_of(entry)]
        row["monitors"] = {name: monitor.kind for name, monitor in entry.spec.monitors.items()}
    return written


def _requests(store):
    entries = promotion_requests(store, MODEL)
    written = _written("request", entries)
    for row, entry in zip(written, entries, strict=True):
        row["approved_by"] = [approval.actor for approval in entry.approvals]
        row["authors"] = entry.authors
    return written


def _rollouts(store):
    entries = store.rollouts()
    written = _written("rollout", entries)
    for row, entry in zip(written, entries, strict=True):
        row["plan"] = rollout_plan.plan_of(entry).to_json()
        evidence = progress_of(entry).evidence
        row["requests"] = {role: counters.requests for role, counters in evidence.step.items()}
        row["log_evidence"] = {
            text: round(float(test.log_evidence), 6) for text, test in evidence.tests.items()
        }
    return written


def _windows(store):
    entries = Monitors(store).windows(ENDPOINT)
    written = _written("window", entries)
    for row, entry in zip(written, entries, strict=True):
        row["alarms"] = entry.evidence.get("alarms", [])
        row["accepted"] = entry.accepted
    return written


def _retrainings(store):
    entries = Retrainings(store).find()
    written = _written("retraining", entries)
    for row, entry in zip(written, entries, strict=True):
        row["plan"] = asdict(retraining_plan.plan_of(entry))
        row["figures"] = entry.figures.as_json()
        row["cause"] = entry.cause["kind"]
    return written


def state_contents(folder):
    """Return the files of a server's state folder that the next start reads."""
    wanted = read_state(folder / WANTED, Wanted)
    followed = read_state(folder / FOLLOWED, Followed)
    control = read_state(folder / CONTROL, Control)
    assert control is not None
    assert followed is not None
    assert wanted is not None
    return {
        "generation": wanted.generation,
        "wanted": {
            name: endpoint.model_dump(mode="json") for name, endpoint in wanted.endpoints.items()
        },
        "followed": [reference.model_dump(mode="json") for reference in followed.references],
        "unloaded": control.unloaded,
        "added": {name: [*spec.variants] for name, spec in control.added.items()},
    }


def log_contents(folder):
    """Return the rows of an inference log with one hour of rows, and their labels."""
    log = open_log(str(folder))
    (hour,) = log.hours(ENDPOINT)
    window = Window(hour.start, hour.end)
    rows = log.read(ENDPOINT, window)
    assert rows is not None
    columns = sorted(
        name for name in rows.table.column_names if name not in ("_segment", "_offset")
    )
    labelled = log.labelled(ENDPOINT, window)
    assert labelled is not None
    return {
        "endpoints": log.endpoints(),
        "window": str(window),
        "count": log.count(ENDPOINT, window),
        "model": [rows.model, rows.version],
        "types": {name: str(rows.table.schema.field(name).type) for name in columns},
        "rows": rows.table.select(columns)
        .sort_by([("_prediction_id", "ascending"), ("_row", "ascending")])
        .to_pylist(),
        "labels": sorted(labelled.table.column("_label").to_pylist()),
        "unreadable": log.unreadable,
    }


def as_json(contents):
    """Return the contents as the values that JSON has."""
    return json.loads(json.dumps(contents, default=_plain))


def _plain(value):
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no form in JSON")
