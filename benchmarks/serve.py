"""Compare the speed of onnxserve with other model servers, in one run.

    # everything, about twenty minutes on two cores
    .venv/bin/python benchmarks/serve.py
    .venv/bin/python benchmarks/serve.py --only one-row --rounds 1 --seconds 1
    .venv/bin/python benchmarks/serve.py --only one-row --peers flask echo

The peers are installed into separate environments. The measured server has one core,
and the clients another. The rounds are interleaved, every response is checked, and
ratios within a round are compared. For one row, the clients are a polling client and
wrk, if it is installed. Capture, metrics and limits of onnxserve are on unless the row
states otherwise.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
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
    bench = works.Bench(folder, options.rounds, options.seconds, _say, peers)
    rows: list[table.Row] = []
    try:
        for name in options.only or works.WORKS:
            summary = (works.WORKS[name].__doc__ or "").partition("\n\n")[0]
            _say(f"{name}: {' '.join(summary.split())}")
            os.sched_setaffinity(0, {CLIENT_CORE})
            rows += works.WORKS[name](bench)
    finally:
        if options.keep:
            _say(f"kept {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"{_machine()}; {options.rounds} rounds of {options.seconds:g} s\n")
    print(table.markdown(rows))
    print("\n" + "\n".join(f"- {note}" for note in bench.notes))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds (15)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=1.0,
        help="seconds per server in each round (1)",
    )
    parser.add_argument("--only", nargs="+", choices=list(works.WORKS), help="run only these works")
    parser.add_argument(
        "--peers",
        nargs="+",
        help="only peers whose name contains one of these words",
    )
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--keep", action="store_true", help="keep models, logs and state folders")
    return parser.parse_args()


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
    day = datetime.now(UTC).date()
    return (
        f"{day}, {cpu}, {os.cpu_count()} cores, Linux {platform.release()}, Python "
        f"{platform.python_version()}"
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
