"""Tests of the pages that begin with the deployment `flights` of docs/by-hand.md. Their
blocks run in the order of this table.
"""

import re
import sys
from pathlib import Path

import pytest

from tests.support.guides import BY_HAND, ROOT, Reader, blocks, shell

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

PAGES = {
    "rollout.md": [
        r"flights +95 +models:/flight-delay@champion",
        r"challenger +5 +models:/flight-delay/2",
    ],
    "promote.md": [
        r"^flight-delay version 2 has the alias @champion",
        r"^  flights/flights serves it after",
        r"^SECTION +NAME +models:/flight-delay/1 +models:/flight-delay/2 +TREND$",
        r"^OUTPUT +CHANGED ROWS +LARGEST DIFFERENCE$",
        r"^flight-delay version 2: flight-delay-2-card/model_card.html",
        r"^models:/flight-delay/2: \d+ files are signed and verified",
    ],
    "replay.md": [r"^  prediction: equal to the bit$", r"^operator +output +type"],
    "log.md": [
        r"^\d+ flights, [\d.]+% predicted correctly",
        r"500 of 500 labelled rows are in the log",
        r"1 of 1 labelled rows are in the log",
        r"rows were answered, \d+ of them captured, 0 dropped",
        r"^1 row$|^… and more rows: --limit is \d+$",
        r'^\{"accepted":1\}\{"accepted":2\}$',
    ],
    "monitor.md": [r"^flights daily 2013-07-04/2013-07-05: (no )?drift$"],
    "server-settings.md": [r"Deployment flights is updated"],
    "observe.md": [r"^onnxserve_agent_up 1"],
    "examine.md": [
        r"^noise +1 +0\.9711 +\+0\.0228$",
        r"^scale +10 +0\.8628 +\+0\.1310 +compactness error$",
        r'^\{"columns": \["carrier"',
        r"^worst concave points +1\.013 +\+0\.0030 ± 0\.0017$",
        r"^onnxruntime_profile_.*\.json$",
    ],
    "gate.md": [
        r"^gated-cancer version 2: passed, compared with models:/gated-cancer/1$",
        r"^refused$",
        "^gate: forced$",
    ],
    "console.md": [
        r"promote +flight-delay version 2: version 1 in @champion → version 2 in @champion$"
    ],
}
"""Each page with lines of its commands' output."""


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """Yield a reader who has trained twice and deployed version 1 by hand."""
    folder = tmp_path_factory.mktemp("reader")
    # The packages that a page installs are already in this environment.
    checkout = {"PYTHONPATH": str(ROOT), "PIP_NO_INDEX": "1"}
    reader = Reader(folder, shell(Path(sys.prefix), folder) | checkout)
    _, promote_and_deploy, ask, *_ = blocks("sh", BY_HAND)
    for _ in range(2):
        reader.run(f"mlflow run {ROOT} -e train --env-manager local")
    reader.run(promote_and_deploy)
    reader.run(ask)
    yield reader
    # A page puts the data of the endpoint on hold, which refuses its deletion.
    reader.run("onnxserve endpoint hold flights --release --why 'read' || true")
    reader.run("mlflow deployments delete -t onnxserve --name flights")


@pytest.mark.parametrize("page", PAGES)
def test_page_runs(reader, page):
    printed = "\n".join(reader.run_page(page))
    assert [line for line in PAGES[page] if not re.search(line, printed, re.MULTILINE)] == [], (
        printed
    )
