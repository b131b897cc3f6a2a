"""Compare the speed of onnxserve with other model servers, in one run.

    # everything, about fifteen minutes on two cores
    .venv/bin/python benchmarks/serve.py
    .venv/bin/python benchmarks/serve.py --only one-row --rounds 1 --seconds 1
    .venv/bin/python benchmarks/serve.py --only one-row --peers fastapi mlflow

The peers are installed into separate environments. The measured server has one core,
and the clients another. The rounds are interleaved, every response is checked, and
ratios within a round are compared. For one row, the clients are a polling client and
wrk, if it is installed. Capture, metrics and limits of onnxserve are on.
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

from benchmarks.serving import table, works
from benchmarks.serving.servers import CLIENT_CORE, cores_given


def main() -> int:
    options = _options()
    if not cores_given():
        print("two cores are needed: one for the server, one for the clients", file=sys.stderr)
        return 1
    folder = Path(tempfile.mkdtemp(prefix="onnxserve-benchmark-"))
    peers = frozenset(options.peers) if options.peers else None
    installs = not options.no_install
    bench = works.Bench(folder, options.rounds, options.seconds, _say, peers, installs)
    print(table.HEAD, flush=True)
    try:
        for name in options.only or works.WORKS:
            summary = (works.WORKS[name].__doc__ or "").partition("\n\n")[0]
            _say(f"{name}: {' '.join(summary.split())}")
            os.sched_setaffinity(0, {CLIENT_CORE})
            for row in works.WORKS[name](bench):
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
    parser.add_argument("--seconds", type=float, default=1.0, help="per server and round (1)")
    parser.add_argument("--only", nargs="+", choices=list(works.WORKS), help="run only these works")
    parser.add_argument("--peers", nargs="+", help="only peers whose name contains such a word")
    parser.add_argument("--no-install", action="store_true", help="only peers that are installed")
    return parser.parse_args()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
