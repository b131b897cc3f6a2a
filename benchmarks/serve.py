"""Compare the speed of onnxserve with other model servers, in one run.

    # everything, about half an hour on two cores
    .venv/bin/python benchmarks/serve.py
    .venv/bin/python benchmarks/serve.py --only one-row --rounds 1 --seconds 1
    .venv/bin/python benchmarks/serve.py --only one-row --peers fastapi mlflow
    .venv/bin/python benchmarks/serve.py --only memory --models 1 10 --peers mlserver
    # the greatest rate with a p99 within 10 ms, about 20 minutes; 600 s of ours
    .venv/bin/python benchmarks/serve.py --arrivals poisson
    .venv/bin/python benchmarks/serve.py --arrivals poisson --seconds 600 --peers none

The peers are installed into separate environments. The measured server has one core,
and the clients another. The rounds are interleaved, every response is checked, and
ratios within a round are compared; servers are measured one after the other in
`memory` and with Poisson arrivals. For one row, the clients are a polling client and,
if they are installed, wrk (closed loop) and Triton's perf_analyzer (Poisson). Capture,
metrics and limits of onnxserve are on.
"""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))  # for `projects`, whose models are served

from benchmarks.serving import arrivals, many, table, works
from benchmarks.serving.servers import CLIENT_CORE, cores_given

CLOSED = {
    "one-row": (table.HEAD, works.one_row),
    "start": (table.HEAD, works.start_and_memory),
    "estimators": (table.HEAD, many.estimators),
    "memory": (many.HEAD, many.memory),
}
POISSON = {"one-row": (arrivals.HEAD, arrivals.one_row)}
"""The works of a closed loop and of Poisson arrivals by name: the head of the table,
and the function that yields its rows.
"""


def main() -> int:
    options = _options()
    if not cores_given():
        print("two cores are needed: one for the server, one for the clients", file=sys.stderr)
        return 1
    folder = Path(tempfile.mkdtemp(prefix="onnxserve-benchmark-"))
    peers = frozenset(options.peers) if options.peers else None
    installs = not options.no_install
    is_poisson = options.arrivals == "poisson"
    seconds = options.seconds or (60.0 if is_poisson else 1.0)
    bench = works.Bench(folder, options.rounds, seconds, _say, peers, installs, options.models)
    chosen = POISSON if is_poisson else CLOSED
    shown = ""
    try:
        for name in options.only or chosen:
            if name not in chosen:
                print(f"{name} has no Poisson arrivals: omit --arrivals", file=sys.stderr)
                return 2
            head, work = chosen[name]
            summary = (work.__doc__ or "").partition("\n\n")[0]
            _say(f"{name}: {' '.join(summary.split())}")
            if head != shown:
                print(f"\n{head}" if shown else head, flush=True)
                shown = head
            os.sched_setaffinity(0, {CLIENT_CORE})
            for row in work(bench):
                print(row, flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("\n" + "\n".join(f"- {note}" for note in bench.notes))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds (15)")
    parser.add_argument(
        "--seconds", type=float, help="per server and round (1), or of the confirming trial (60)"
    )
    parser.add_argument(
        "--arrivals",
        choices=["closed", "poisson"],
        default="closed",
        help="the next request follows the response, or requests arrive independently of it",
    )
    parser.add_argument("--only", nargs="+", choices=list(CLOSED), help="run only these works")
    parser.add_argument(
        "--models", nargs="+", type=int, default=[1, 10, 100], help="of memory (1 10 100)"
    )
    parser.add_argument("--peers", nargs="+", help="only peers whose name contains such a word")
    parser.add_argument("--no-install", action="store_true", help="only peers that are installed")
    return parser.parse_args()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
