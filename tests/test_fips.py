"""The tests of signatures, proofs, keys, tokens, TLS and digests with a Python that
refuses MD5 and SHA-1 for security (`tests/support/fips`).
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
OF_SECURITY = (
    "core/statedir/test_files.py",
    "core/store/test_audit_tree.py",
    "core/store/test_checkpoints.py",
    "core/store/test_keys.py",
    "core/test_mlmodel.py",
    "core/test_signatures.py",
    "promote/evidence/test_proof.py",
    "promote/evidence/test_witness.py",
    "serve/agent/test_keys.py",
    "serve/inference/test_auth.py",
    "serve/test_certificates.py",
)
NAMED = {"md5 other botocore.compat"}  # It tries if MD5 exists, to check parts of S3 uploads.


@pytest.mark.long
@pytest.mark.timeout(900)
def test_fips_security_tests_avoid_weak_digests(tmp_path):
    uses = tmp_path / "uses"
    search = [str(TESTS / "support" / "fips"), str(TESTS.parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(search), "FIPS_USES": str(uses)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        [*command, *(str(TESTS / name) for name in OF_SECURITY)],
        cwd=TESTS.parent, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout
    assert set(uses.read_text().splitlines()) <= NAMED
