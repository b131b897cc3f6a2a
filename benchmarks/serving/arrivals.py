"""The greatest rate of a server whose 99th percentile of the latency is at most 10 ms,
when requests arrive independently of each other.

The Server scenario of MLPerf Inference has this rule: queries arrive by a Poisson
process with a fixed seed, latency counts from the scheduled time, a binary search finds
a candidate, and a longer run must confirm it, otherwise the rate is lowered by a small
delta (github.com/mlcommons/inference_policies, inference_rules.adoc, "Scenarios" and
"LoadGen Operation"). Its runs last 600 s. 10 ms is its limit for MobileNets-v1 in
version 0.5.
"""

import math
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import uvloop

from mlflow_deploy_plugin.contrib.sizing.load import random_times, tail_latency
from mlflow_deploy_plugin.contrib.sizing.measure import highest_rate
from projects.environments import NotInstalled, environment

from . import models
from .load import Target, closed_loop
from .peers import BENTOML, FASTAPI, MLFLOW, MLSERVER, MOSEC, OURS, PERF_ANALYZER
from .timeline import FAILED, Answers, Client
from .works import CONNECTIONS, Asked, Bench, start

LIMIT = 0.010
LAG_LIMIT = 0.001
"""A trial is invalid if the client sent 1 % of the requests later than this."""
DELAYED_LIMIT = 0.01
"""A trial of perf_analyzer is invalid if it sent a larger share of requests late."""
TRIAL_SECONDS = 3.0
LEAST_REQUESTS = 100
FIRST_SHARE = 0.1
STEP = 0.95
"""The steps by which a rate is lowered that a longer trial does not confirm."""
CONFIRMATIONS = 8
ANALYZER_THREADS = 32
SEED = 0
HEAD = (
    "| server | client | rate with p99 ≤ 10 ms | of closed loop | p50 / p99 | requests "
    "| client late | the next rate tried | ratio |\n|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Trial:
    """A load in an open loop, with latencies in seconds.

    Attributes:
        rate: requests per second: scheduled; of perf_analyzer: the rate it measured.
        wrong: responses that are missing or not the expected one.
        late: by how much the client was late, as printed.
        is_valid: the client kept its schedule.
    """

    rate: float
    requests: int
    p50: float
    p99: float
    wrong: int
    late: str
    is_valid: bool

    @property
    def holds(self) -> bool:
        return self.is_valid and not self.wrong and self.p99 <= LIMIT

    @property
    def outcome(self) -> str:
        if not self.is_valid:
            return f"{self.rate:,.0f}/s: invalid, client late ({self.late})"
        wrong = f", {self.wrong} wrong" if self.wrong else ""
        p99 = f"{self.p99 * 1e3:.1f} ms" if self.requests else self.late
        return f"{self.rate:,.0f}/s: {p99}{wrong}"


Try = Callable[[float, float, int], Trial]
"""Sends a load: requests per second, seconds, seed."""


def one_row(bench: Bench) -> Iterator[str]:
    """Search the greatest rate for one row of thirty floats, one server after the
    other, with our client and with Triton's perf_analyzer.
    """
    model, data = models.small(bench.folder)
    bench.note(f"Poisson arrivals, seed {SEED}, confirmed over {bench.seconds:g} s")
    foreign = _perf_analyzer(bench)
    ours: dict[str, float] = {}
    for peer in (OURS, MLFLOW, FASTAPI, BENTOML, MLSERVER, MOSEC):
        with ExitStack() as stack:
            for asked in start(bench, stack, peer, [model], data.head(1)):
                clients = {"ours, polling": _polling(asked.target)}
                if foreign is not None and peer in (OURS, MLSERVER):
                    clients["perf_analyzer, V2"] = _analyzing(foreign, asked)
                closed = closed_loop(asked.target, CONNECTIONS, 1).rate
                for client, load in clients.items():
                    bench.say(f"  {peer.name}, {client}; closed loop: {closed:,.0f}/s")
                    confirmed, failed = search(load, closed, bench.seconds, bench.say)
                    cells = [peer.name, client, *_cells(confirmed, failed, closed)]
                    ratio = ""
                    if confirmed and peer is OURS:
                        ours[client] = confirmed.rate
                    if confirmed and client in ours:
                        ratio = f"{ours[client] / confirmed.rate:.2f}"
                    yield f"| {' | '.join([*cells, ratio])} |"


def search(
    load: Try, closed: float, seconds: float, say: Callable[[str], None]
) -> tuple[Trial | None, Trial | None]:
    """Return the greatest rate that holds, within 5 %, and the lowest that does not.

    The rate is found by a bisection with short trials from a tenth of `closed`
    (requests/s in a closed loop), and confirmed by a trial of `seconds`. A short trial
    that fails is repeated, because the machine disturbs some.
    """
    trials: dict[float, Trial] = {}

    def holds(rate: float, duration: float = min(TRIAL_SECONDS, seconds), tries: int = 2) -> bool:
        for seed in range(SEED, SEED + tries):
            trials[rate] = load(rate, max(duration, LEAST_REQUESTS / rate), seed)
            say(f"    {duration:.0f} s: {trials[rate].outcome}")
            if trials[rate].holds:
                return True
        return False

    rate = highest_rate(holds, FIRST_SHARE * closed)
    left = CONFIRMATIONS if rate else 0
    while left and not holds(rate, seconds, tries=1):
        rate *= STEP
        left -= 1
    failed = [rate for rate, trial in trials.items() if not trial.holds]
    return trials[rate] if left else None, trials[min(failed)] if failed else None


def _cells(trial: Trial | None, failed: Trial | None, closed: float) -> list[str]:
    following = failed.outcome if failed else ""
    if trial is None:
        rate = "none" if failed and failed.is_valid else "not measured"
        return [rate, "", "", "", "", following]
    latencies = f"{trial.p50 * 1e3:.2f} / {trial.p99 * 1e3:.2f} ms"
    share = f"{trial.rate / closed:.0%} of {closed:,.0f}/s"
    return [f"{trial.rate:,.0f}/s", share, latencies, f"{trial.requests:,}", trial.late, following]


def _polling(target: Target) -> Try:
    """Return the loads of our client, which never sleeps."""

    def judge(answer: bytes) -> int:
        is_right = answer.startswith(b"HTTP/1.1 200") and target.expected in answer
        return 0 if is_right else FAILED

    def load(rate: float, seconds: float, seed: int) -> Trial:
        client = Client(target.port, target.raw, judge, tick=0)
        offsets = random_times(rate, seconds, seed).tolist()
        answers = Answers.of(uvloop.run(client.run(offsets)))
        latency = answers.latency
        lag = tail_latency(answers.lag)
        return Trial(
            rate,
            len(latency),
            float(np.median(latency)),
            tail_latency(latency),
            answers.failed,
            f"p99 {lag * 1e3:.2f} ms",
            lag <= LAG_LIMIT,
        )

    return load


def _perf_analyzer(bench: Bench) -> Path | None:
    """Return the folder of the programs with Triton's client; None: it is not wanted,
    or does not run here, with a note of the reason.
    """
    if not bench.wants("perf_analyzer"):
        return None
    try:
        programs = environment(PERF_ANALYZER, bench.installs)
    except NotInstalled as error:
        bench.note(f"perf_analyzer: {error}")
        return None
    shown = _analyze(programs, "--version")
    if "Perf Analyzer Version" not in shown:
        bench.note(f"perf_analyzer: apt-get install libb64-0d ({shown.strip()[-200:]})")
        return None
    bench.note(shown.strip())
    return programs


def _analyze(programs: Path, *words: str) -> str:
    """Return the output of perf_analyzer, which needs the library of CUDA's runtime
    also without a GPU.
    """
    library = next(programs.parent.glob("lib/*/site-packages/nvidia/cuda_runtime/lib"))
    done = subprocess.run(
        [programs / "perf_analyzer", *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LD_LIBRARY_PATH": str(library)},
    )
    return done.stdout + done.stderr


def _analyzing(programs: Path, asked: Asked) -> Try:
    """Return the loads of perf_analyzer: V2 with JSON, and three windows of a third of
    the time. It has its own seed, and counts latency from the time at which it sent.
    """

    def load(rate: float, seconds: float, seed: int) -> Trial:
        words = ["-m", models.SMALL, "-u", f"127.0.0.1:{asked.server.port}", "--shape", "X:1,30"]
        words += ["--input-tensor-format", "json", "--output-tensor-format", "json"]
        words += ["--request-rate-range", f"{rate:.1f}", "--request-distribution", "poisson"]
        words += ["--percentile", "99", "--max-threads", str(ANALYZER_THREADS), "--sync", "-v"]
        words += ["-p", str(round(seconds / 3 * 1e3)), "-r", "3", "-s", "1000000"]
        return read_report(rate, _analyze(programs, *words))

    return load


def read_report(rate: float, report: str) -> Trial:
    """Return the load that a report of perf_analyzer describes."""
    client = report.partition("Client:")[2].partition("Server:")[0]

    def figure(name: str) -> float:
        found = re.search(rf"{name}: ([\d.e+]+)", client)
        return float(found[1]) if found else 0.0

    delayed = re.search(r"([\d.]+)% of the requests were delayed", client)
    share = float(delayed[1]) / 100 if delayed else 0.0
    if not figure("Request count"):
        return Trial(rate, 0, math.inf, math.inf, 1, " ".join(report.split())[-100:], True)
    return Trial(
        figure("Throughput"),
        int(figure("Request count")),
        figure("p50 latency") / 1e6,
        figure("p99 latency") / 1e6,
        0,
        f"{share:.1%} delayed" if delayed else "no warning",
        share <= DELAYED_LIMIT,
    )
