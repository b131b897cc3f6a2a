"""Tests of the output and errors of `onnxserve monitor …`. See tests/watch/monitors for
the schedule.
"""

import json
import re
from dataclasses import replace
from datetime import UTC, datetime

import mlflow
import pytest
from click.testing import CliRunner

from mlflow_deploy_plugin.cli.commands import main
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.store.alerts import Alert, Alerts
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.monitor_tables import Monitors
from mlflow_deploy_plugin.watch.monitors import evaluation
from mlflow_deploy_plugin.watch.sequential.evidence import Evidence, SeriesKey
from tests.support.monitored_endpoint import CALM, DAY, SHIFTED, capture, make_endpoint
from tests.support.refusals import mentions
from tests.support.tracking import tracking_at


@pytest.fixture(scope="module")
def home(tmp_path_factory, new_database):
    """An endpoint `flights` with a calm day and a shifted one in its log, and `other`
    without a monitor.
    """
    folder = tmp_path_factory.mktemp("monitor")
    make_endpoint(folder / "home")
    for day, shift in ((CALM, 0.0), (SHIFTED, 9.0)):
        capture(folder / "home", day, shift)
    with pytest.MonkeyPatch.context() as patch, tracking_at(new_database(folder)):
        patch.setenv("ONNXSERVE_HOME", str(folder / "home"))
        patch.chdir(folder)
        yield folder / "home"


@pytest.fixture
def store(home):
    opened = open_store(Settings(home=home).store_url)
    yield opened
    opened.close()


def invoke(*arguments):
    return CliRunner().invoke(main, ["monitor", *arguments])


def figures(result):
    """Return the numbers of windows in the last line of a backfill: judged now, without
    a verdict, already judged, not judged.
    """
    return [int(number) for number in re.findall(r"\d+", result.stdout.splitlines()[-1])]


@pytest.mark.long
def test_run_prints_the_verdict_the_worst_columns_and_the_run_and_writes_the_window_down(
    home, store
):
    first = invoke("run", "flights")
    again = invoke("run", "flights", "--window", "2013-07-02/1d", "-o", "json", "--exit-code")

    assert (first.exit_code, again.exit_code) == (0, 1), first.output + again.output
    assert first.stdout.startswith("flights daily 2013-07-02/2013-07-03: drift\n")
    assert "\n  x" in first.stdout
    result = json.loads(again.stdout)
    assert result["verdict"] == "drift"
    assert result["revision"] == 2
    assert result["rows"] == 250
    assert result["findings"][0]["subject"] == "x"
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
def test_spark_engine_gives_the_same_verdict_as_the_local_one(home):
    pytest.importorskip("pyspark")
    command = ["run", "flights", "--window", "2013-07-02/1d", "-o", "json"]

    here, spread = (
        json.loads(invoke(*command, "--engine", engine).stdout) for engine in ("local", "spark")
    )

    assert spread["verdict"] == here["verdict"]
    assert spread["findings"] == here["findings"]


@pytest.mark.long
def test_backfill_judges_unjudged_windows_oldest_first(home):
    capture(home, CALM + 10 * DAY)

    first = invoke("backfill", "flights", "daily", "--from", "2013-07-10", "--to", "2013-07-12")
    again = invoke("backfill", "flights", "daily", "--from", "2013-07-10", "--to", "2013-07-12")

    assert first.stdout.splitlines() == [
        "[1/2] 2013-07-10/2013-07-11: not judged: the window has no rows, and fewer than 7 "
        "earlier windows are known",
        "[2/2] 2013-07-11/2013-07-12: no drift",
        "1 windows judged, 1 without a verdict, 0 already judged, 0 could not be judged",
    ]
    assert figures(again) == [0, 1, 1, 0]
    assert first.exit_code == again.exit_code == 0


def test_backfill_reports_windows_that_could_not_be_judged(home, store, monkeypatch):
    capture(home, CALM + 20 * DAY)
    with monkeypatch.context() as away:
        away.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with tracking_at("http://127.0.0.1:9"):
            failed = invoke(
                "backfill", "flights", "daily", "--from", "2013-07-21", "--to", "2013-07-22"
            )

    again = invoke("backfill", "flights", "daily", "--from", "2013-07-21", "--to", "2013-07-22")

    assert failed.exit_code == 1
    assert figures(failed) == [0, 0, 0, 1]
    assert failed.stdout.startswith("[1/1] 2013-07-21/2013-07-22: could not be judged: ")
    assert "Traceback" not in failed.output
    assert again.stdout.startswith("[1/1] 2013-07-21/2013-07-22: no drift\n")


@pytest.mark.long
def test_ctrl_c_ends_a_backfill_and_the_same_command_goes_on(home, store, monkeypatch):
    for days in (30, 31):
        capture(home, CALM + days * DAY)
    command = ["backfill", "flights", "daily", "--from", "2013-07-31", "--to", "2013-08-02"]
    judge = evaluation.judge_and_log

    def interrupted(asked):
        if asked.window.start == CALM + 31 * DAY:
            raise KeyboardInterrupt
        return judge(asked)

    with monkeypatch.context() as person:
        person.setattr(evaluation, "judge_and_log", interrupted)
        ended = invoke(*command)

    assert ended.exit_code == 130
    assert mentions(ended.stderr, "1 of 2 windows")
    assert mentions(
        Monitors(store).windows(since=CALM + 31 * DAY)[-1].reason, "interrupted by the user"
    )
    assert figures(invoke(*command)) == [1, 0, 1, 0]


def test_run_due_judges_due_windows_like_the_controller(home, store):
    begin = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - 2 * DAY
    make_endpoint(home, "due", begin=begin, grace="1s")
    capture(home, begin, name="due")

    first = invoke("run-due", "due")
    again = invoke("run-due", "due")

    assert first.exit_code == again.exit_code == 0, first.output
    lines = first.stdout.splitlines()
    assert lines[0].startswith(f"due: monitor daily {begin:%F}/{begin + DAY:%F}: no drift; run ")
    assert mentions(lines[1], "not judged: the window has no rows")
    assert mentions(again.stdout, "due: monitor daily", "no window is due")
    store.remove_endpoint("due")


def test_list_shows_how_each_monitor_stands(home, store):
    monitors = Monitors(store)
    window = monitors.add("flights", "daily", CALM + 100 * DAY, CALM + 101 * DAY)

    (before,) = json.loads(invoke("list", "-o", "json").stdout)
    monitors.close(window, "the log is gone")
    invoke("pause", "flights", "daily", "--why", "a known fault")
    text = invoke("list", "flights")
    invoke("resume", "flights", "daily")

    assert before["monitor"] == "daily"
    assert before["kind"] == "drift"
    assert before["state"] == "waiting"
    assert before["open"]["start"] == (CALM + 100 * DAY).isoformat()
    assert before["next_due"].startswith("2013-07-02T00:05")
    lines = text.stdout.splitlines()
    assert lines[0].split() == [
        "ENDPOINT",
        "MONITOR",
        "KIND",
        "EVERY",
        "STATE",
        "LAST",
        "WINDOW",
        "VERDICT",
        "NEXT",
        "DUE",
        "(UTC)",
    ]
    assert lines[1].split()[:5] == ["flights", "daily", "drift", "1d", "paused"]
    assert lines[2].startswith("flights daily: by ")
    assert mentions(lines[3], "flights daily", "1 of its windows")
    assert "no controller runs" in text.stderr


def test_pausing_twice_is_fine_and_both_stand_in_the_history(home, store):
    outputs = [
        invoke(verb, "flights", "daily").stdout for verb in ("pause", "pause", "resume", "resume")
    ]

    assert [line.rpartition("is ")[2] for line in outputs] == [
        "paused\n",
        "paused\n",
        "resumed\n",
        "not paused\n",
    ]
    assert [event.action for event in store.events("flights")][-2:] == [
        "monitor.pause",
        "monitor.resume",
    ]


def test_a_monitor_of_a_stopped_endpoint_starts_no_server(home, store):
    added = invoke("add", "flights", "hourly", "--every", "1h")
    stopped = [event.action for event in store.events("flights")][-1]
    removed = invoke("remove", "flights", "hourly")

    assert (added.exit_code, removed.exit_code, stopped) == (0, 0, "update"), added.output
    assert not (home / "deployments" / "flights" / "server.log").exists()


def test_a_monitor_is_added_and_removed(home, store):
    from mlflow_deploy_plugin.core.spec.document import empty_endpoint

    store.add_endpoint("onnxserve", empty_endpoint("new"))

    none = invoke("list", "new")
    never = invoke("run-due", "new")
    added = invoke(
        "add", "new", "nightly", "--every", "1h", "--schedule", "15 6 * * 1-5", "-C", "min_rows=7"
    )
    again = invoke("add", "new", "nightly")
    wrong = invoke("add", "new", "other", "--schedule", "every day")
    unknown = invoke("add", "new", "other", "-C", "min_row=7")
    nowhere = invoke("add", "new", "other", "--time-zone", "Berlin")

    assert mentions(none.stdout, "onnxserve monitor add new MONITOR")
    assert mentions(never.stderr, "'new'", "'drift'", "onnxserve monitor add")
    assert added.exit_code == 0, added.output
    endpoint = store.endpoint("new")
    assert endpoint is not None
    spec = endpoint.spec.monitors["nightly"]
    assert spec.every == "1h"
    assert spec.schedule == "15 6 * * 1-5"
    assert spec.min_rows == 7
    assert mentions(again.stderr, "'nightly'", "already")
    assert mentions(wrong.stderr, "monitors.other.schedule", "five fields")
    assert mentions(unknown.stderr, "'monitors.NAME.min_rows'")
    assert mentions(nowhere.stderr, "time_zone", "'Berlin'", "Europe/Berlin")
    assert invoke("remove", "new", "nightly").exit_code == 0
    assert mentions(invoke("remove", "new", "nightly").stderr, "no monitor", "'nightly'", "'new'")
    store.remove_endpoint("new")


def test_a_budget_of_alarms_belongs_to_the_endpoint_and_a_bad_one_changes_nothing(home, store):
    late = CALM.isoformat()[:10] + "/2100-01-01"

    zero = invoke("add", "flights", "other", "-C", "alarms.false_per_year=0")
    overlapping = invoke(
        "add", "flights", "other", "--reference", f"window:{late}", "-C", "alarms.false_per_year=1"
    )
    unchanged = store.require_endpoint("flights").spec
    added = invoke("add", "flights", "other", "-C", "alarms.false_per_year=2", "-C", "min_rows=60")
    text = invoke("list", "flights")
    documents = json.loads(invoke("list", "flights", "-o", "json").stdout)
    spec = store.require_endpoint("flights").spec
    removed = CliRunner().invoke(
        main, ["endpoint", "update", "flights", "-C", "alarms.false_per_year="]
    )
    invoke("remove", "flights", "other")

    assert mentions(zero.stderr, "alarms.false_per_year", "at least 0.1")
    assert mentions(overlapping.stderr, "monitors.other.reference", late, "END")
    assert zero.exit_code == 1
    assert overlapping.exit_code == 1
    assert mentions(added.stdout, "alarms.false_per_year", "2 monitors", "default to 2")
    assert ("other" in unchanged.monitors, unchanged.alarms.false_per_year) == (False, None)
    assert added.exit_code == 0, added.output
    assert spec.alarms.false_per_year == 2
    assert spec.monitors["other"].min_rows == 60
    assert mentions(text.stdout, "flights: alarms.false_per_year is 2")
    assert {document["false_per_year"] for document in documents} == {2}
    assert removed.exit_code == 0, removed.output
    assert store.require_endpoint("flights").spec.alarms.false_per_year is None
    # The server is neither started nor changed.
    assert not (home / "deployments" / "flights" / "server.log").exists()


def test_accepted_alarms_are_named_with_their_start(home, store):
    level = SeriesKey("x", "level")
    evidence = Evidence("bins", {level: 9.0}, ("x",), {level: CALM.isoformat()})
    window = Monitors(store).add("flights", "daily", CALM + 200 * DAY, CALM + 201 * DAY)
    Monitors(store).update(
        replace(window, state="judged", verdict="drift", evidence=evidence.to_json())
    )

    CliRunner().invoke(main, ["endpoint", "update", "flights", "-C", "alarms.false_per_year=1"])
    other = invoke("accept", "flights", "daily", "--column", "y")
    accepted = invoke("accept", "flights", "daily", "--column", "x", "--why", "a new carrier")
    listed = invoke("list", "flights")
    document = json.loads(invoke("list", "flights", "-o", "json").stdout)[0]
    again = invoke("backfill", "flights", "daily", "--from", "2014-01-17", "--to", "2014-01-18")
    history = CliRunner().invoke(main, ["audit", "history", "flights"])
    CliRunner().invoke(main, ["endpoint", "update", "flights", "-C", "alarms.false_per_year="])

    assert accepted.exit_code == 0, accepted.output
    assert mentions(
        accepted.stdout,
        "flights: monitor daily: the baseline of x",
        "the window of 1 July 2013",
        "every check continues",
    )
    assert len(other.stderr.splitlines()) == 1
    assert mentions(other.stderr, "no open alarm", "'y'", "x")
    assert mentions(
        listed.stdout,
        "2014-01-17/2014-01-18  accepted",
        "flights daily: accepted baselines: x since 2013-07-01",
    )
    assert mentions(again.stdout, "2014-01-17/2014-01-18: accepted (already judged")
    assert document["last"]["verdict"] == "accepted"
    assert document["last"]["accepted"] == ["x"]
    assert document["baseline"] == {"x": CALM.isoformat()}
    assert mentions(
        history.stdout, "monitor.accept", "a new carrier", "monitor daily", "x since 2013-07-01T00"
    )


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["run", "flight"], ["no endpoint", "'flight'", "'flights'"]),
        (["run", "flights", "--monitor", "hourly"], ["'flights'", "'hourly'", "it has daily"]),
        (["run", "flights", "--window", "2001-01-01/1d"], ["2001-01-01", "latest complete window"]),
        (
            ["backfill", "flights", "daily", "--from", "2013-07-01", "--to", "2013-07-01T23:00"],
            ["no complete window", "1d"],
        ),
        (["list", "flight"], ["no endpoint", "'flight'", "'flights'"]),
        (["pause", "flights", "hourly"], ["'flights'", "'hourly'", "it has daily"]),
    ],
)
def test_invalid_arguments_give_a_one_line_error(home, arguments, names):
    result = invoke(*arguments)

    assert result.exit_code == 1
    assert mentions(result.stderr, *names)
    assert len(result.stderr.splitlines()) == 1


def test_a_window_that_the_controller_is_at_is_left_to_it(home, store, monkeypatch):
    from mlflow_deploy_plugin.watch.monitors import manual_runs
    from mlflow_deploy_plugin.watch.monitors.scheduler import lease_name

    monkeypatch.setattr(manual_runs, "PATIENCE_SECONDS", 0.0)
    lease = store.acquire_lease(lease_name("flights", "daily"), "controller@here", 3600)
    assert lease is not None

    result = invoke("run", "flights", "--window", "2013-07-01/1d")

    store.release_lease(lease)
    assert mentions(result.stderr, "controller@here")


def test_expire_dry_run_previews_the_old_records_that_expire_deletes(store):
    long_ago = datetime(2013, 7, 1, tzinfo=UTC)
    Alerts(store).add_once(
        Alert("flights/daily/said/1", "flights", "daily", "said", long_ago, long_ago)
    )

    dry = invoke("expire", "--keep", "400d", "--dry-run")
    done = invoke("expire", "--keep", "400d")
    again = invoke("expire", "--keep", "400d")

    assert mentions(dry.stdout, "0 windows", "1 alerts", "400d", "would be deleted")
    assert mentions(done.stdout, "0 windows", "1 alerts", "400d", "deleted")
    assert "would" not in done.stdout
    assert mentions(again.stdout, "0 windows", "0 alerts")


@pytest.mark.parametrize(("keep", "said"), [("3d", "too short: late labels"), ("soon", "90d")])
def test_expire_refuses_a_time_that_is_too_short_or_none(home, keep, said):
    refused = invoke("expire", "--keep", keep)

    assert refused.exit_code == 2
    assert (f"Error: --keep {keep}" if keep == "3d" else "Error: --keep 'soon'") in refused.stderr
    assert said in refused.stderr
