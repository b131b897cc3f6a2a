"""Measure the CPU time to sign and to verify files with a signature, per 10 MB.

    # a quarter of a minute
    .venv/bin/python benchmarks/signatures.py

Each row has a folder of random files. A figure is the median of the rounds. `digest` is
the time of `hash_files`, which an agent needs for every version. A process imports
model_signing once.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from mlflow_deploy_plugin.core.mlmodel import hash_files
from mlflow_deploy_plugin.core.signatures import Signature, Signer, read_bundle, trust_file
from tests.support.keypairs import write_key

ROUNDS = 7
FOLDERS = ((1, 1), (1, 10), (10, 10), (1, 100), (1, 500))
"""The number of files of each folder, and their total size in MB."""


def milliseconds(action: Callable[[], object]) -> float:
    """Return the median CPU time, which other programs of the machine hardly change."""
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        action()
        times.append(time.process_time() - start)
    return statistics.median(times) * 1000


def write_files(
    folder: Path,
    count: int,
    megabytes: int,
) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.bin").write_bytes(os.urandom(megabytes * 1_000_000 // count))
    return folder


def main() -> None:
    start = time.perf_counter()
    import model_signing

    print(f"import of {model_signing.__name__}: {(time.perf_counter() - start) * 1000:.0f} ms")
    print("files     MB  sign/ms  verify/ms  digest/ms  verify/ms per 10 MB")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        keys = write_key(root)
        signer = Signer(str(keys.key))
        for count, megabytes in FOLDERS:
            folder = write_files(root / f"{count}-{megabytes}", count, megabytes)
            bundle = root / "model.sig"
            sign = milliseconds(partial(signer.sign, folder, bundle))
            signature = Signature(read_bundle(bundle), trust_file(keys.public))
            verify = milliseconds(partial(signature.check, folder))
            digest = milliseconds(partial(hash_files, folder))
            print(
                f"{count:5} {megabytes:6} {sign:8.1f} {verify:10.1f} {digest:10.1f} "
                f"{verify * 10 / megabytes:20.1f}"
            )


if __name__ == "__main__":
    main()
