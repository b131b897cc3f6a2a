"""The dossier of an endpoint: its period, its statements and their sources."""

import hashlib
import html
import json
import os
import re
from contextlib import closing
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import chain
from pathlib import Path

import click
import pandas as pd
import pytest
import requests
from sklearn.linear_model import LogisticRegression
from sqlalchemy import delete, update

import mlflow_deploy_plugin
from mlflow_deploy_plugin.cli.audit import dossier as dossier_command
from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.signatures import Signer
from mlflow_deploy_plugin.core.spec.document import apply_config, new_endpoint
from mlflow_deploy_plugin.core.store.alerts import Alert, Alerts
from mlflow_deploy_plugin.core.store.audit_seal import adopt_trail
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.monitor_tables import Monitors
from mlflow_deploy_plugin.core.store.tables import AuditRow, AuditTreeRow
from mlflow_deploy_plugin.promote.evidence.dossier import (
    _SECTIONS,
    make_dossier,
    parse_period,
    read_frameworks,
)
from mlflow_deploy_plugin.promote.evidence.proof import check_dossier, obtain_proof
from mlflow_deploy_plugin.promote.gate.promotion import promote
from mlflow_deploy_plugin.serve.inference_log.windows import Window
from mlflow_deploy_plugin.wrap.flavor.signing import sign_version
from tests.support.audit_trail import store_of_server
from tests.support.classifiers import write_classifier
from tests.support.clocks import Clock
from tests.support.commands import done, onnxserve, said
from tests.support.inference_log import LogWriter
from tests.support.keypairs import write_key
from tests.support.refusals import mentions, refused
from tests.support.services.mlflow_server import MlflowServer
from tests.support.statements import statements, texts
from tests.support.stores import own_store
from tests.support.tracking import tracking_at

QUARTER = datetime(2013, 10, 1, tzinfo=UTC)
PERIOD = Window(QUARTER, datetime(2014, 1, 1, tzinfo=UTC))
DAY = timedelta(days=1)
MLFLOW = "https://mlflow.example.com/runs"


@pytest.fixture
def clock():
    return Clock(QUARTER - 30 * DAY)


@pytest.fixture
def trail(registry, clock):
    """A store with the endpoint `flights`, which follows @champion of `toy`."""
    with own_store(clock) as store:
        spec = new_endpoint("flights", "models:/toy@champion")
        store.add_endpoint("onnxserve", spec)
        yield store


@pytest.mark.parametrize(
    ("text", "days"),
    [
        ("2026-Q1", "2026-01-01/2026-04-01"),
        ("2026-Q4", "2026-10-01/2027-01-01"),
        ("2026-11", "2026-11-01/2026-12-01"),
        ("2026-12", "2026-12-01/2027-01-01"),
        ("2026", "2026-01-01/2027-01-01"),
        ("2026-11-03/2026-11-05", "2026-11-03/2026-11-05"),
        ("2026-11-03/2d", "2026-11-03/2026-11-05"),
    ],
)
def test_dossier_period(text, days):
    period = parse_period(text, datetime(2026, 12, 31, tzinfo=UTC))
    start, end = (datetime.fromisoformat(f"{day}T00:00+00:00") for day in days.split("/"))
    assert period == Window(start, end)


@pytest.mark.parametrize(
    "text",
    [
        *("", "soon", "2026-Q5", "2026-13", "2026-00", "0000", "9999", "2026-1", "26-Q4", "٢٠٢٦"),
        *("2026-11-05/2026-11-03", "2026-11-05/", "2027", "2027-01-01/1d"),
    ],
)
def test_dossier_period_is_refused(text):
    with refused(InvalidConfig):
        parse_period(text, datetime(2026, 12, 31, tzinfo=UTC))


@pytest.fixture
def quarter(trail, clock):
    """Version 1 of `toy` serves before the period, and version 2 is promoted in it."""
    moved = {"moved": {"place": "@champion", "before": "", "files": "f"}}
    trail.record("alias", actor="ada", model="toy", version="1", after="@champion", detail=moved)
    trail.record("alias", actor="ada", model="toy", version="3", after="@other")
    clock.now = QUARTER + DAY
    digest = "c0ffee" + "0" * 58
    detail = {"report": f"{MLFLOW}/r1", "run_id": "r1", "report_digest": digest}
    trail.record("gate", actor="eva", model="toy", version="2", after="passed", detail=detail)
    trail.record("request", actor="eva", model="toy", version="2", after="@champion")
    seen = {"report": digest, "verdict": "passed"}
    trail.record("approve", actor="ada", model="toy", version="2", why="fine", detail=seen)
    trail.record("promote", actor="eva", model="toy", version="2", detail={"to": "@champion"})
    trail.record("tag", actor="bob", model="toy", version="2", after="blue")
    trail.record("monitor.accept", actor="ada", endpoint="flights", why="holidays")
    clock.now = PERIOD.end
    trail.record("promote", actor="late", model="toy", version="3")
    return trail


@pytest.fixture
def made(quarter, tmp_path):
    """Return a function that makes the dossier of a period."""

    def make(period=PERIOD, log=tmp_path / "log"):
        return make_dossier(quarter, "flights", period, str(log))

    return make


def test_dossier_of_decisions(made):
    dossier = made()
    assert mentions(texts(dossier, "versions"), "models:/toy@champion (100 %)", "toy was version 1")
    promotions = texts(dossier, "promotions").splitlines()
    earlier, request, approval, promotion = promotions
    assert mentions(earlier, "ada", "alias", "2013-09-01")
    assert mentions(request, "eva", "request", "@champion", "toy version 2")
    assert mentions(approval, "ada", "approve", "the gate passed", "c0ffee000000", "fine")
    assert mentions(promotion, "eva", "promote", "@champion")
    gate = statements(dossier)["gate"][0]
    assert (gate.kind, gate.source, gate.url) == ("run", "r1/gate_report.html", f"{MLFLOW}/r1")
    assert mentions(texts(dossier, "changes"), "bob", "tag")
    assert mentions(texts(dossier, "responses"), "ada", "monitor.accept", "holidays")
    assert mentions(texts(dossier, "trail_state"), "6 events of flights and toy")
    everything = "".join(texts(dossier, section) for section in statements(dossier))
    assert not mentions(everything, "late")
    assert not mentions(everything, "@other")


def test_dossier_of_requests(tmp_path, made):
    writer = LogWriter(tmp_path / "log")
    for day, version in ((-1, "9"), (0, "1"), (1, "1"), (2, "2"), (92, "9")):
        moments = [QUARTER + day * DAY + timedelta(seconds=row) for row in range(3)]
        writer.write({"_event_time": moments}, version=version)
    failed = {"_event_time": [QUARTER] * 2, "_row": [0, 0], "_error_code": ["BAD_REQUEST", "X"]}
    LogWriter(tmp_path / "log" / "_failed").write({**failed, "_offset": [0, 1]})
    dossier = made()
    served = texts(dossier, "versions")
    assert mentions(served, "flight-delay version 1 answered from 2013-10-01 00:00 to 2013-10-02")
    assert mentions(served, "flight-delay version 2 answered from 2013-10-03 00:00")
    assert mentions(served, "captured requests is 2", "captured requests is 1")
    counts = texts(dossier, "requests")
    assert mentions(
        counts, "3 answered requests", "9 rows", "2 failed requests", "BAD_REQUEST is 1"
    )
    assert {entry.kind for entry in statements(dossier)["requests"]} == {"log"}
    assert mentions(texts(dossier, "signatures"), "flight-delay version 1 has no signature")


@pytest.mark.long
def test_dossier_verifies_signatures_with_required_key(quarter, tmp_path, made):
    keys = write_key(tmp_path)
    write_classifier(Path("2").absolute(), (1.0, 2.0))
    sign_version("models:/toy/2", Signer(str(keys.key)))
    quarter.record("sign", actor="ada", model="toy", version="2")
    spec = quarter.require_endpoint("flights").spec
    quarter.replace_spec(apply_config(spec, {"require": f"signature={keys.public}"}))
    period = Window(QUARTER, PERIOD.end + DAY)

    def signatures():
        return texts(made(period), "signatures").splitlines()

    unsigned, signed, deleted, event = signatures()
    assert mentions(unsigned, "toy version 1 has no signature", "model.sig")
    assert mentions(signed, "toy version 2 has a valid signature", str(keys.public))
    assert mentions(deleted, "toy version 3 has no signature")
    assert mentions(event, "ada", "sign", "toy version 2")
    Path("2/added").write_text("")
    assert mentions(signatures()[1], "toy version 2 has no valid signature", str(keys.public))
    keys.public.unlink()
    digest = hashlib.sha256(Path("2/model.sig").read_bytes()).hexdigest()
    assert mentions(signatures()[1], "toy version 2 has the signature", digest)


def judge(store, day, verdict, *alarms):
    """Store a judged window of the monitor `daily`, or a failed window."""
    begin = QUARTER + day * DAY
    window = Monitors(store).add("flights", "daily", begin, begin + DAY)
    judged = replace(
        window,
        state="judged" if verdict else "failed",
        verdict=verdict,
        reason="the mean moved",
        evidence={"alarms": alarms},
        run_id=f"r{day}",
        run_url=f"{MLFLOW}/r{day}",
    )
    Monitors(store).update(judged)


def test_dossier_of_verdicts(quarter, made):
    judge(quarter, 0, "drift", "x")
    judge(quarter, 1, "no drift")
    judge(quarter, 2, "")
    judge(quarter, 92, "drift", "x")
    Monitors(quarter).add("flights", "hourly", QUARTER + 3 * DAY, QUARTER + 4 * DAY)
    dossier = made()
    counts, drift, failure, hourly = statements(dossier)["verdicts"]
    assert mentions(counts.text, "daily", "1 drift", "1 no drift", "1 failed")
    assert counts.url == f"{MLFLOW}/r2/artifacts/report.html"
    assert mentions(drift.text, "2013-10-01", "daily is drift", "the mean moved")
    assert drift.url == f"{MLFLOW}/r0/artifacts/report.html"
    assert mentions(failure.text, "2013-10-03", "failed")
    assert mentions(hourly.text, "hourly", "1 pending")


def test_dossier_of_alarms(quarter, made):
    for name, at in (("before", QUARTER - DAY), ("now", QUARTER), ("later", PERIOD.end)):
        detail = {"lines": [f"it drifts {name}"], "link": f"{MLFLOW}/{name}"}
        alert = Alert(name, "flights", "daily", "firing", at, at, detail=detail)
        Alerts(quarter).add_once(alert)
    dossier = made()
    (alarm,) = statements(dossier)["alarms"]
    assert mentions(alarm.text, "daily", "firing", "it drifts now")
    assert alarm.url == f"{MLFLOW}/now"


def test_each_event_is_in_one_section(quarter, made):
    dossier = made()
    sources = [
        entry.source
        for section, entries in statements(dossier).items()
        if section != "versions"
        for entry in entries
        if entry.kind in ("event", "run")
    ]
    assert len(sources) == len(set(sources))
    events = [event for event in quarter.events() if QUARTER <= event.at < PERIOD.end]
    named = " ".join(sources)
    assert all(event.action in named for event in events if event.action != "gate")


def test_dossier_of_unreadable_log(tmp_path, made):
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "endpoint=flights").write_text("not a folder")
    for log in (str(tmp_path / "log"), "ftp://example.com/log"):
        dossier = made(log=log)
        assert mentions(texts(dossier, "requests"), "cannot be read", log)
    hour = tmp_path / "rows" / "endpoint=flights" / "date=2013-10-01" / "hour=00"
    hour.mkdir(parents=True)
    (hour / "torn.parquet").write_text("PAR1")
    dossier = made(log=tmp_path / "rows")
    assert mentions(texts(dossier, "requests"), "torn.parquet", "0 answered requests")


def test_dossier_of_period_without_events(made):
    period = parse_period("2013-11", PERIOD.end)
    dossier = made(period)
    place = statements(dossier)["versions"][1]
    assert mentions(place.text, "@champion of toy was version 2")
    assert place.source.startswith("promote 2013-10-02")
    assert mentions(texts(dossier, "promotions"), "approve", "2013-10-02")
    assert mentions(texts(dossier, "trail_state"), "0 events")
    before = parse_period("2012", PERIOD.end)
    assert set(statements(made(before))) == {
        "requests",
        "trail_state",
    }


def test_dossier_of_deleted_endpoint(quarter, made):
    quarter.remove_endpoint("flights")
    dossier = made()
    assert mentions(texts(dossier, "promotions"), "approve")


def test_dossier_files(quarter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done("audit dossier flights --period 2013-09-01/2013-11-01")
    folder = tmp_path / "flights-2013-09-01-2013-11-01-dossier"
    document = json.loads((folder / "dossier.json").read_text())
    assert document["start"] == "2013-09-01T00:00:00+00:00"
    page = (folder / "dossier.html").read_text()
    assert mentions(page, "Not signed", "Dossier of flights", "Trail state")


FRAMEWORKS = read_frameworks()


@pytest.fixture(params=FRAMEWORKS)
def framework(request):
    return request.param


def sections_of(framework, key):
    articles = FRAMEWORKS[framework]["articles"]
    return [*chain.from_iterable(article.get(key, ()) for article in articles)]


def test_framework_lists_each_section_once(framework):
    names = sorted(chain.from_iterable(_SECTIONS.values()))
    assert sorted(sections_of(framework, "sections")) == names
    assert set(sections_of(framework, "see")) <= set(names)


def test_framework_names_missing_evidence(framework):
    document = FRAMEWORKS[framework]
    assert document["read"] >= date(2026, 12, 1)
    assert all("https://" in source for source in document["sources"])
    for article in document["articles"]:
        assert article.keys() - {"sections", "see"} == {"name", "asks", "missing"}
        assert all(article[key].endswith(".") for key in ("asks", "missing"))


def test_framework_is_an_option(quarter, tmp_path):
    (option,) = [entry for entry in dossier_command.params if entry.name == "framework"]
    assert isinstance(option.type, click.Choice)
    assert list(option.type.choices) == list(FRAMEWORKS)
    done("audit dossier flights --period 2013-09 --framework sr-11-7 --folder", str(tmp_path))
    assert mentions((tmp_path / "dossier.html").read_text(), "SR 26-2")
    refusal = onnxserve("audit dossier flights --period 2013-09 --framework eu")
    assert (refusal.exit_code, mentions(refusal.stderr, "'eu'", "eu-ai-act")) == (2, True)


def page_of(document, folder, framework):
    """Return dossier.html without its markup, and the digest of dossier.json."""
    document.write(folder, {"signed_by": "", "events": [], "made_by": "ada"}, framework)
    page = (folder / "dossier.html").read_text()
    assert set(re.findall("href='#(.*?)'", page)) <= set(re.findall("id='(.*?)'", page))
    written = (folder / "dossier.json").read_bytes()
    return html.unescape(re.sub(r"<[^>]+>", "", page)), hashlib.sha256(written).digest()


def test_framework_orders_the_same_statements(made, tmp_path, framework):
    dossier = made()
    plain, content = page_of(dossier, tmp_path, None)
    page, same = page_of(dossier, tmp_path, framework)
    assert same == content
    for entries in statements(dossier).values():
        assert {page.count(entry.text) for entry in entries} == {1}
    document = FRAMEWORKS[framework]
    open_articles = [entry for entry in document["articles"] if not {"sections", "see"} & {*entry}]
    assert page.count("Not answered by this software.") == len(open_articles) > 0
    places = [page.index(f"\n{article['name']}\n") for article in document["articles"]]
    assert places == sorted(places)
    assert mentions(page, "does not ask for evidence against tampering")
    assert mentions(page, f"Read on {document['read']}", *document["sources"])
    assert "answered by this software" not in plain


def test_framework_article_is_open_without_statements(made, tmp_path):
    def monitoring(period):
        page, _ = page_of(made(period), tmp_path, "sr-11-7")
        return page.partition("Validation: ongoing monitoring")[2].partition("Validation")[0]

    assert mentions(monitoring(PERIOD), "Has statements", "monitor.accept")
    assert mentions(monitoring(parse_period("2012", PERIOD.end)), "Not answered by this dossier")


def test_framework_does_not_count_absence_as_answer(made, tmp_path, framework):
    """A statement may say that a version is unsigned or that nobody sent requests."""
    page, _ = page_of(made(), tmp_path, framework)
    assert mentions(page, "has no signature", "Has statements, which may say that")
    assert "Answered in part" not in page


def test_dossier_with_framework_verifies(quarter, tmp_path, clock, framework):
    with store_of_server(str(quarter._engine.url), tmp_path, clock) as server:
        server.record("approve", actor="eva", model="toy", version="3")
        dossier = make_dossier(server, "flights", PERIOD, str(tmp_path / "log"))
        dossier.write(tmp_path, obtain_proof(server, dossier), framework)
    faults, summary = check_dossier(tmp_path / "dossier.json")
    assert (faults, mentions(summary, "signed", "statements by")) == ([], True)


def test_dossier_is_refused(quarter, tmp_path):
    def refusal(*arguments):
        return said(onnxserve("audit dossier", *arguments))

    assert mentions(refusal("flight", "--period", "2013-09"), "'flight'", "'flights'")
    (tmp_path / "file").touch()
    options = ("--period", "2013-09", "--folder", str(tmp_path / "file" / "folder"))
    assert mentions(refusal("flights", *options), str(tmp_path / "file" / "folder"))
    for period in ("soon", "2999"):
        result = onnxserve("audit dossier flights --period", period)
        assert (result.exit_code, mentions(result.stderr, period)) == (2, True)


def test_dossier_of_changed_trail(quarter, tmp_path, made):
    assert mentions(texts(made(), "trail_state"), "trail is unsigned: 0 events")
    with store_of_server(str(quarter._engine.url), tmp_path):
        intact = texts(made(), "trail_state")
    assert mentions(intact, "earlier events became the first leaves", "trail is intact")
    with quarter.transaction() as session:
        session.execute(update(AuditRow).where(AuditRow.action == "approve").values(actor="eve"))
    changed = texts(made(), "trail_state")
    assert mentions(changed, "trail is changed", "approve of toy by eve")


def test_dossier_lists_tampered_events_as_unsigned(quarter, tmp_path, clock, made):
    clock.now = QUARTER + 2 * DAY
    moved = {"moved": {"place": "@champion", "before": "2"}}
    with store_of_server(str(quarter._engine.url), tmp_path, clock) as server:
        server.record("approve", actor="eva", model="toy", version="3")
        for action, version in (("approve", "3"), ("alias", "9")):
            quarter.record(action, actor="forged", model="toy", version=version, detail=moved)
    dossier = made()
    unsigned = texts(dossier, "unsigned_events").splitlines()
    assert [mentions(line, "forged", "not signed by MLflow's server") for line in unsigned] == [
        True,
        True,
    ]
    assert not mentions(texts(dossier, "promotions"), "forged")
    assert mentions(texts(dossier, "trail_state"), "2 are not signed", "the store itself")
    clock.now += DAY
    later = made(Window(clock.now, PERIOD.end))
    assert mentions(texts(later, "versions"), "@champion of toy was version 2")
    assert not mentions(texts(later, "versions"), "version 9")


def test_adopted_trail_is_shown_in_later_periods(quarter, tmp_path, clock, made):
    def later():
        period = Window(QUARTER + DAY, PERIOD.end)
        return texts(made(period), "trail_state")

    clock.now = QUARTER
    with store_of_server(str(quarter._engine.url), tmp_path, clock) as server:
        with quarter.transaction() as session:
            session.execute(delete(AuditTreeRow))
        assert "adopt" not in later()
        adopt_trail(server, "restored")
    assert mentions(later(), "adopt", "“restored”")


@pytest.fixture
def console(tmp_path, new_database, new_home):
    """An MLflow server with the console, at which version 1 of `toy` is promoted."""
    new_database(tmp_path)
    server = MlflowServer(tmp_path, app="onnxserve", variables=dict(os.environ))
    with server.running(), tracking_at(server.url):
        mlflow_deploy_plugin.log_model(
            LogisticRegression().fit([[0.0], [1.0]], [0, 1]),
            "model",
            registered_model_name="toy",
            input_example=pd.DataFrame({"a": [0.0, 1.0]}),
        )
        yield server


def events_at(url):
    """Return the action and the time of each event that the console shows."""
    trail = requests.get(f"{url}/onnxserve/history.jsonl", timeout=30).text
    events = [json.loads(line) for line in trail.splitlines()]
    return {f"{event['action']} {event['at']}" for event in events}


@pytest.mark.long
def test_dossier_of_a_server_is_valid_and_linked(console, tmp_path):
    with closing(open_store(Settings(home=tmp_path / "home").store_url)) as store:
        spec = new_endpoint("flights", "models:/toy@champion")
        store.add_endpoint("onnxserve", spec)
        promote("toy", "1", "@champion", store=store, actor="eva")
        period = parse_period(f"{store.now():%Y}", store.now())
        dossier = make_dossier(store, "flights", period, str(tmp_path / "log"))
        dossier.write(tmp_path, obtain_proof(store, dossier))
    faults, summary = check_dossier(tmp_path / "dossier.json")
    assert (faults, mentions(summary, "signed", "statements by")) == ([], True)
    found = [entry for entries in statements(dossier).values() for entry in entries]
    assert {"log", "event", "run", "registry", "trail"} == {entry.kind for entry in found}
    pages = {entry.url for entry in found}
    assert {requests.get(page, timeout=30).status_code for page in pages} == {200}
    assert {entry.source for entry in found if entry.kind == "event"} <= events_at(console.url)
