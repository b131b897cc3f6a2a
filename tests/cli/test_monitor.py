"""Tests of `onnxserve monitor`, `drift` and `alert`. See tests/watch/monitors for the
judgements and their schedule.
"""

import json
import re
from dataclasses import replace
from datetime import UTC, datetime

import mlflow
import numpy as np
import pytest

from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.document import empty_endpoint, new_endpoint
from mlflow_deploy_plugin.core.store.alerts import Alert, Alerts
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.monitor_tables import Monitors
from mlflow_deploy_plugin.watch.monitors import evaluation, manual_runs
from mlflow_deploy_plugin.watch.monitors.scheduler import lease_name
from mlflow_deploy_plugin.watch.reports import log
from mlflow_deploy_plugin.watch.reports.evidently_charts import EvidentlyReport
from mlflow_deploy_plugin.watch.sequential.evidence import Evidence, SeriesKey
from tests.support.commands import done, onnxserve, told
from tests.support.monitored_endpoint import CALM, DAY, SHIFTED, capture, make_endpoint
from tests.support.refusals import mentions
from tests.support.tracking import tracking_at

OF_SHIFTED = "--window 2013-07-02/1d"


@pytest.fixture(scope="module")
def home(tmp_path_factory, new_database):
    """An endpoint `flights` with a calm day and a shifted one in its log."""
    folder = tmp_path_factory.mktemp("monitor")
    make_endpoint(folder / "home")
    for day, shift in ((CALM, 0.0), (SHIFTED, 9.0)):
        capture(folder / "home", day, shift)
    with pytest.MonkeyPatch.context() as patch, tracking_at(new_database(folder)):
        patch.setenv("ONNXSERVE_HOME", str(folder / "home"))
        # Importing Evidently takes seconds; tests/watch/reports tests its charts.
        patch.setattr(log, "draw_columns", lambda *_: EvidentlyReport())
        patch.chdir(folder)
        yield folder / "home"


@pytest.fixture
def store(home):
    opened = open_store(Settings(home=home).store_url)
    yield opened
    opened.close()


def figures(result):
    """Return the numbers of windows in the last line of a backfill: judged now, without
    a verdict, already judged, not judged.
    """
    return [int(number) for number in re.findall(r"\d+", result.stdout.splitlines()[-1])]


@pytest.mark.long
def test_run_prints_and_stores_a_verdict(home, store):
    first = onnxserve("drift run flights")
    again = onnxserve(f"monitor run flights {OF_SHIFTED} -o json --exit-code")

    assert (first.exit_code, again.exit_code) == (0, 1), first.output + again.output
    assert first.stdout.startswith("flights daily 2013-07-02/2013-07-03: drift\n")
    assert re.search(r"\n  x: out of range [\d.]+% → 100.0%, .*; since 2 July 2013\n", first.stdout)
    measured = r"distribution +mean [\d.]+ SD +threshold [\d.]+ SD"
    change = r"mean -?0\.\d+ \(Tuesdays\) → 9\.\d+, higher"
    history = f"{change}; drift since the window of 2 July 2013"
    assert re.search(rf"\n  x +{measured} .*{history}\n", first.stdout)
    assert "\n  SD: " in first.stdout
    assert first.stderr.splitlines()[::5] == [
        "judging 2013-07-02/2013-07-03 of flights: drift",
        "logging the report to the experiment onnxserve/flights",
    ]
    result = json.loads(again.stdout)
    finding = result["findings"][0]
    assert (result["verdict"], result["revision"], result["rows"]) == ("drift", 2, 250)
    assert (finding["subject"], finding["measure"], finding["unit"]) == (
        "x",
        "share out of range",
        "SD",
    )
    assert finding["since"] == SHIFTED.isoformat()
    assert finding["in_a_row"] == 1
    windows = Monitors(store).windows("flights", "daily")
    assert [(window.start, window.revision, window.verdict) for window in windows] == [
        (SHIFTED, 1, "drift"),
        (SHIFTED, 2, "drift"),
    ]
    assert windows[0].run_id in first.stdout
    run = mlflow.get_run(windows[1].run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["onnxserve.window.revision"] == "2"


@pytest.mark.long
def test_spark_gives_the_same_findings(home):
    pytest.importorskip("pyspark")

    local = told(f"monitor run flights {OF_SHIFTED}")
    spark = told(f"monitor run flights {OF_SHIFTED} --engine spark")

    assert spark["verdict"] == local["verdict"]
    assert spark["findings"] == local["findings"]


@pytest.mark.long
def test_project_judges_like_the_command(home, monkeypatch):
    # The imports take seconds, and every worker imports every test.
    from mlflow_deploy_plugin.watch.run import KINDS
    from projects.flight_delay import drift

    requests = []
    judge = KINDS["drift"]

    def recorded(request):
        requests.append(replace(request, revision=1))
        return judge(request)

    monkeypatch.setitem(KINDS, "drift", recorded)
    project_run = mlflow.MlflowClient().create_run("0").info.run_id
    run = told(f"drift run flights {OF_SHIFTED}")["run_id"]
    monkeypatch.setenv("MLFLOW_RUN_ID", project_run)
    monkeypatch.setattr("sys.argv", ["drift", "--window", "2013-07-02/1d"])
    drift.main()

    of_command, of_project = (
        mlflow.artifacts.load_dict(f"runs:/{logged}/verdict.json") for logged in (run, project_run)
    )
    assert of_project.pop("revision") == of_command.pop("revision") + 1
    assert of_project == of_command
    assert requests[0] == requests[1]


def test_drift_between_files_needs_no_endpoint(home):
    rng = np.random.default_rng(0)
    for name, shift, count in (("training", 0, 2000), ("recent", 2, 250), ("few", 0, 5)):
        values = "\n".join(map(str, rng.normal(shift, 1, count)))
        (home.parent / f"{name}.csv").write_text(f"x\n{values}\n")
    command = "drift run mine --reference training.csv --rows"

    drifted, few = (onnxserve(f"{command} {name}.csv --exit-code") for name in ("recent", "few"))

    assert (drifted.exit_code, few.exit_code) == (1, 3), drifted.output + few.output
    assert re.match(r"mine drift .*: drift\n  250 rows\n  x: mean ", drifted.stdout)
    assert "experiment onnxserve/mine" in drifted.stdout


@pytest.mark.long
def test_backfill_counts_failed_windows(home, monkeypatch):
    capture(home, CALM + 20 * DAY)
    command = "monitor backfill flights daily --from 2013-07-21 --to 2013-07-22"
    with monkeypatch.context() as away:
        away.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with tracking_at("http://127.0.0.1:9"):
            failed = onnxserve(command)

    again = onnxserve(command)

    assert failed.exit_code == 1
    assert figures(failed) == [0, 0, 0, 1]
    assert failed.stdout.startswith("[1/1] 2013-07-21/2013-07-22: could not be judged: ")
    assert "Traceback" not in failed.output
    assert again.stdout.startswith("[1/1] 2013-07-21/2013-07-22: no drift\n")


@pytest.mark.long
def test_interrupted_backfill_continues(home, store, monkeypatch):
    for days in (30, 31):
        capture(home, CALM + days * DAY)
    command = "monitor backfill flights daily --from 2013-07-30 --to 2013-08-02"
    judge = evaluation.judge_and_log

    def interrupted(asked):
        if asked.window.start == CALM + 31 * DAY:
            raise KeyboardInterrupt
        return judge(asked)

    with monkeypatch.context() as person:
        person.setattr(evaluation, "judge_and_log", interrupted)
        ended = onnxserve(command)

    assert ended.exit_code == 130
    assert mentions(ended.stderr, "2 of 3 windows")
    without_rows, judged = ended.stdout.splitlines()
    assert without_rows.startswith("[1/3] 2013-07-30/2013-07-31: not judged: ")
    assert judged == "[2/3] 2013-07-31/2013-08-01: no drift"
    reason = Monitors(store).windows(since=CALM + 31 * DAY)[-1].reason
    assert mentions(reason, "interrupted by the user")
    assert figures(onnxserve(command)) == [1, 1, 1, 0]


@pytest.mark.long
def test_run_due_judges_due_windows(home, store):
    begin = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - 2 * DAY
    make_endpoint(home, "due", begin=begin, grace="1s")
    capture(home, begin, name="due")

    first = onnxserve("monitor run-due due")
    again = onnxserve("monitor run-due due")

    assert first.exit_code == again.exit_code == 0, first.output
    lines = first.stdout.splitlines()
    assert lines[0].startswith(f"due: monitor daily {begin:%F}/{begin + DAY:%F}: no drift; run ")
    assert mentions(lines[1], "not judged: the window has no rows")
    assert mentions(again.stdout, "due: monitor daily", "no window is due")
    store.remove_endpoint("due")


def test_list_shows_monitor_states(home, store):
    monitors = Monitors(store)
    window = monitors.add("flights", "daily", CALM + 100 * DAY, CALM + 101 * DAY)

    (before,) = told("monitor list")
    monitors.close(window, "the log is gone")
    paused = onnxserve("monitor pause flights daily --why fault").stdout
    text = onnxserve("monitor list flights")
    resumed = onnxserve("monitor resume flights daily").stdout
    again = onnxserve("monitor resume flights daily").stdout

    assert (before["monitor"], before["kind"], before["state"]) == ("daily", "drift", "waiting")
    assert before["open"]["start"] == (CALM + 100 * DAY).isoformat()
    assert before["next_due"].startswith("2013-07-02T00:05")
    lines = text.stdout.splitlines()
    head = "ENDPOINT MONITOR KIND EVERY STATE LAST WINDOW VERDICT NEXT DUE (UTC)"
    assert lines[0].split() == head.split()
    assert lines[1].split()[:5] == ["flights", "daily", "drift", "1d", "paused"]
    assert lines[2].startswith("flights daily: by ")
    assert mentions(lines[3], "flights daily", "1 of its windows")
    assert "no controller runs" in text.stderr
    assert paused == "flights: monitor daily is paused\n"
    assert resumed.endswith(" is resumed\n")
    assert again.endswith(" is not paused\n")
    actions = [event.action for event in store.events("flights")]
    assert actions[-2:] == ["monitor.pause", "monitor.resume"]


def test_monitor_is_added_and_removed(home, store):
    store.add_endpoint("onnxserve", empty_endpoint("new"))

    none = onnxserve("monitor list new")
    never = onnxserve("monitor run-due new")
    command = "monitor add new nightly"
    added = onnxserve(f"{command} --every 1h --schedule '15 6 * * 1-5' -C min_rows=7")
    again = onnxserve(command)

    assert mentions(none.stdout, "onnxserve monitor add new MONITOR")
    assert mentions(never.stderr, "'new'", "'drift'", "onnxserve monitor add")
    assert added.exit_code == 0, added.output
    spec = store.require_endpoint("new").spec.monitors["nightly"]
    assert (spec.every, spec.schedule, spec.min_rows) == ("1h", "15 6 * * 1-5", 7)
    assert mentions(again.stderr, "'nightly'", "already")
    assert onnxserve("monitor remove new nightly").exit_code == 0
    removed = onnxserve("monitor remove new nightly")
    assert mentions(removed.stderr, "no monitor", "'nightly'", "'new'")
    store.remove_endpoint("new")


def test_alarm_budget_is_of_the_endpoint(home, store):
    command = "monitor add flights other -C alarms.false_per_year"
    added = onnxserve(f"{command}=2 -C min_rows=60")
    text = onnxserve("monitor list flights")
    documents = told("monitor list flights")
    spec = store.require_endpoint("flights").spec
    onnxserve("endpoint update flights -C alarms.false_per_year=")
    onnxserve("monitor remove flights other")

    assert mentions(added.stdout, "alarms.false_per_year", "2 monitors", "default to 2")
    assert spec.alarms.false_per_year == 2
    assert spec.monitors["other"].min_rows == 60
    assert mentions(text.stdout, "flights: alarms.false_per_year is 2")
    assert {document["false_per_year"] for document in documents} == {2}
    assert store.require_endpoint("flights").spec.alarms.false_per_year is None
    # The server is neither started nor changed.
    assert not (home / "deployments" / "flights" / "server.log").exists()


def test_accepted_alarms_are_listed(home, store):
    level = SeriesKey("x", "level")
    evidence = Evidence("bins", {level: 9.0}, ("x",), {level: CALM.isoformat()})
    window = Monitors(store).add("flights", "daily", CALM + 200 * DAY, CALM + 201 * DAY)
    Monitors(store).update(
        replace(window, state="judged", verdict="drift", evidence=evidence.to_json())
    )

    onnxserve("endpoint update flights -C alarms.false_per_year=1")
    accepted = done("monitor accept flights daily --column x --why 'a new carrier'")
    listed = done("monitor list flights")
    document = told("monitor list flights")[0]
    history = done("audit history flights")
    onnxserve("endpoint update flights -C alarms.false_per_year=")

    assert mentions(accepted, "flights: monitor daily: the baseline of x", "1 July 2013")
    assert mentions(listed, "2014-01-17/2014-01-18  accepted")
    assert mentions(listed, "flights daily: accepted baselines: x since 2013-07-01")
    assert document["last"]["verdict"] == "accepted"
    assert document["last"]["accepted"] == ["x"]
    assert document["baseline"] == {"x": CALM.isoformat()}
    assert mentions(history, "monitor.accept", "a new carrier", "x since 2013-07-01T00")


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("monitor run flights --window 2001-01-01/1d", ["2001-01-01", "latest complete window"]),
        (
            "monitor backfill flights daily --from 2013-07-01 --to 2013-07-01T23:00",
            ["no complete window", "1d"],
        ),
        ("monitor pause flights hourly", ["'flights'", "'hourly'", "it has daily"]),
        ("monitor add flights a -C min_row=7", ["'monitors.NAME.min_rows'"]),
        ("drift run flights --columns xx", ["'xx'", "'x'"]),
    ],
)
def test_impossible_request_is_refused(home, line, names):
    result = onnxserve(line)

    assert result.exit_code == 1
    assert mentions(result.stderr.splitlines()[-1], *names)
    assert "Traceback" not in result.output


def test_window_of_a_controller_is_refused(home, store, monkeypatch):
    monkeypatch.setattr(manual_runs, "PATIENCE_SECONDS", 0.0)
    lease = store.acquire_lease(lease_name("flights", "daily"), "controller@here", 3600)
    assert lease is not None

    result = onnxserve("monitor run flights --window 2013-07-01/1d")

    store.release_lease(lease)
    assert mentions(result.stderr, "controller@here")


def test_expire_deletes_old_alerts(store):
    long_ago = datetime(2013, 7, 1, tzinfo=UTC)
    Alerts(store).add_once(
        Alert("flights/daily/said/1", "flights", "daily", "said", long_ago, long_ago)
    )

    command = "monitor expire --keep 400d"
    dry_run = done(f"{command} --dry-run")
    assert mentions(dry_run, "0 windows", "1 alerts", "400d", "would be deleted")
    assert mentions(done(command), "0 windows", "1 alerts", "400d")
    assert mentions(done(command), "0 windows", "0 alerts")


@pytest.fixture
def silenced(tmp_path, monkeypatch):
    """The endpoint `flights` in a store of its own."""
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path))
    store = open_store(Settings(home=tmp_path).store_url)
    store.add_endpoint(
        "onnxserve", new_endpoint("flights", "models:/m/1", {"monitors.daily.every": "1d"})
    )
    store.close()


def test_silence_from_begin_to_end(silenced):
    command = "alert silence flights --for 2h"
    made = onnxserve(f"{command} --monitor daily --why 'a known storm'").output
    assert made.startswith("1  flights, monitor daily, until ")
    assert made.endswith(": a known storm\n")
    assert onnxserve(command).output.startswith("2  flights, all monitors, ")
    assert onnxserve("alert silences").output.count("\n") == 2
    assert [entry["monitor"] for entry in told("alert silences")] == ["daily", None]
    ended = onnxserve("alert unsilence 1 --why passed").output
    assert mentions(ended, "silence 1", "over")
    assert onnxserve("alert silences").output.startswith("2  ")
    history = onnxserve("audit history flights").output
    assert mentions(history, "silence  flights", "a known storm", "silence.end  flights")
    assert "why: passed" in history
    unknown = onnxserve("alert silence flights --monitor x --for 2h").stderr
    assert mentions(unknown, "'flights'", "monitor 'x'", "it has daily")
