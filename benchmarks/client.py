"""Compare the Python client with plain requests and httpx on one server: `python -m
benchmarks.client`.

A frame is sent one, 100 and 10,000 rows at a time in sequential calls, and then 400
calls of one row are sent 16 at a time. All ways take part in each round, so that the
other jobs on the machine affect all of them. Compare the ratios.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import requests

from mlflow_deploy_plugin.serve.client.client import AsyncClient, Client
from tests.support.models import mixed_model
from tests.support.serving import servers_below

ROUNDS = 7
CALLS = {1: 200, 100: 100, 10_000: 5}
AT_ONCE = 16
MANY = 400


def frame(rows: int) -> pd.DataFrame:
    random = np.random.default_rng(0)
    carriers = random.choice(["UA", "AA"], rows)
    return pd.DataFrame(
        {
            "carrier": carriers,
            "distance": random.normal(size=rows),
            "hour": np.arange(rows),
            "late": carriers == "UA",
        },
    )


def body(rows: pd.DataFrame) -> dict[str, Any]:
    return {"dataframe_split": rows.to_dict(orient="split", index=False)}


def seconds(call: Callable[[], Any], times: int) -> float:
    begun = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - begun) / times


def one_after_the_other(url: str) -> None:
    for count, times in CALLS.items():
        rows = frame(count)
        records = rows.to_dict("records")
        with Client(url) as client, requests.Session() as session, httpx.Client() as other:
            ways: dict[str, Callable[[], Any]] = {
                "Client, frame": lambda: client.predict(rows),  # noqa: B023 - called within the loop
                "Client, records": lambda: client.predict(records),  # noqa: B023
                "requests, frame as JSON": lambda: session.post(
                    url + "/invocations",
                    json=body(rows),  # noqa: B023
                ).json(),
                "httpx, frame as JSON": lambda: other.post(
                    url + "/invocations",
                    json=body(rows),  # noqa: B023
                ).json(),
            }
            show(f"{count} rows per call", ways, times)


def show(title: str, ways: dict[str, Callable[[], Any]], times: int) -> None:
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _round in range(ROUNDS):
        for name, way in ways.items():
            taken[name].append(seconds(way, times))
    print(title)
    for name, values in taken.items():
        print(
            f"  {name:26} {statistics.median(values) * 1e3:9.3f} ms  (minimum "
            f"{min(values) * 1e3:.3f})",
        )


async def at_once(url: str) -> dict[str, float]:
    record = frame(1).to_dict("records")
    gate = asyncio.Semaphore(AT_ONCE)

    async def ask(call: Callable[[], Any]) -> None:
        async with gate:
            await call()

    taken = {}
    limits = httpx.Limits(max_connections=AT_ONCE)
    async with (
        AsyncClient(url, connections=AT_ONCE) as ours,
        httpx.AsyncClient(limits=limits) as theirs,
    ):

        async def by_httpx() -> None:
            (await theirs.post(url + "/invocations", json={"dataframe_records": record})).json()

        ways: dict[str, Callable[[], Any]] = {
            "AsyncClient": lambda: ours.predict(record),
            "httpx.AsyncClient": by_httpx,
        }
        for name, way in ways.items():
            begun = time.perf_counter()
            await asyncio.gather(*(ask(way) for _ in range(MANY)))
            taken[name] = MANY / (time.perf_counter() - begun)
    return taken


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, servers_below(Path(folder)) as start:
        model = mixed_model(Path(folder) / "flights")
        url = start(str(model), "-C", "capture.fraction=0").wait_ready().url
        one_after_the_other(url)
        rounds = [asyncio.run(at_once(url)) for _ in range(ROUNDS + 1)][1:]
        print(f"{AT_ONCE} concurrent calls of one row")
        for name in rounds[0]:
            print(f"  {name:26} {statistics.median(one[name] for one in rounds):9.0f} calls/s")


if __name__ == "__main__":
    main()
