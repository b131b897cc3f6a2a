"""Signatures of folders, with keys, certificates, and a PKCS#11 token; the bundles are
those of the library's own command.
"""

import shutil
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from mlflow_deploy_plugin.core.errors import InvalidConfig, SignatureRefused
from mlflow_deploy_plugin.core.signatures import (
    BUNDLE,
    UNSIGNED,
    Signature,
    Signer,
    read_bundle,
    trust_file,
)
from tests.support.keypairs import Authority, write_key
from tests.support.models import write_model
from tests.support.refusals import mentions

SOFTHSM = Path("/usr/lib/softhsm/libsofthsm2.so")


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    write_model(folder)
    (folder / "data").mkdir()
    (folder / "data" / "weights").write_bytes(bytes(1000))
    return folder


@pytest.fixture
def keys(tmp_path):
    return write_key(tmp_path)


@pytest.fixture
def bundle(tmp_path, model, keys):
    """The bundle of the folder `model`."""
    Signer(str(keys.key)).sign(model, tmp_path / BUNDLE, "models:/m/1")
    return tmp_path / BUNDLE


def check(model, bundle, trusted):
    Signature(read_bundle(bundle), trust_file(trusted)).check(model)


def model_signing(*arguments):
    from model_signing._cli import main

    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output


def test_library_accepts_our_signature(model, bundle, keys):
    shutil.copy(bundle, model)
    (model / "registered_model_meta").write_text("model_version: '1'\n")
    check(model, bundle, keys.public)
    ours = model / BUNDLE
    model_signing("verify", "key", model, "--signature", ours, "--public_key", keys.public)


def test_library_signature_is_accepted(model, keys):
    theirs = model / BUNDLE
    model_signing("sign", "key", model, "--signature", theirs, "--private_key", keys.key)
    check(model, theirs, keys.public)


@pytest.mark.parametrize("name", [".gitignore", f"data/{BUNDLE}", "data/code.py"])
def test_added_file_is_refused(model, bundle, keys, name):
    (model / name).touch()
    with pytest.raises(SignatureRefused) as refused:
        check(model, bundle, keys.public)
    assert mentions(refused.value.message, BUNDLE, str(keys.public), name)


@pytest.mark.parametrize("name", UNSIGNED)
def test_ignored_folder_is_refused(model, bundle, keys, name):
    (model / name).mkdir()
    (model / name / "code.py").touch()
    with pytest.raises(SignatureRefused, match=f"does not cover {name}"):
        check(model, bundle, keys.public)


def test_files_ignored_by_signer_are_refused(model, keys):
    theirs = model.parent / BUNDLE
    ignored = model / "data"
    key = ("--private_key", keys.key)
    model_signing("sign", "key", model, "--signature", theirs, *key, "--ignore-paths", ignored)
    with pytest.raises(SignatureRefused, match="does not cover data"):
        check(model, theirs, keys.public)


def test_signature_of_other_key_is_refused(model, bundle):
    other = write_key(model.parent, "other")
    with pytest.raises(SignatureRefused, match=r"other\.pub: Key mismatch"):
        check(model, bundle, other.public)


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[" * 100_000, b"\xff", b'{"verificationMaterial": {}, "dsseEnvelope": 3}'],
)
def test_invalid_bundle_is_refused(model, keys, content):
    with pytest.raises(SignatureRefused, match=BUNDLE):
        Signature(content, trust_file(keys.public)).check(model)


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN CERTIFICATE-----"])
def test_file_without_key_is_refused(model, bundle, content):
    file = model.parent / "trusted.pem"
    file.write_bytes(content)
    with pytest.raises(SignatureRefused, match=r"trusted\.pem has no elliptic-curve key"):
        check(model, bundle, file)


def test_expired_or_foreign_certificate_is_refused(model):
    authority = Authority(model.parent / "ours", "ours")
    valid, expired = (
        authority.issue(name, timedelta(seconds=seconds))
        for name, seconds in (("valid", 600), ("expired", -30))
    )
    for certificate, key in (valid, expired):
        Signer(key, certificate).sign(model, Path(certificate).with_suffix(".sig"))
    trusted = Path(authority.certificate)
    check(model, authority.folder / "valid.sig", trusted)
    with pytest.raises(SignatureRefused, match="certificate has expired"):
        check(model, authority.folder / "expired.sig", trusted)
    other = Authority(model.parent / "other", "other")
    with pytest.raises(SignatureRefused, match="self-signed certificate"):
        check(model, authority.folder / "valid.sig", Path(other.certificate))


@pytest.mark.skipif(not SOFTHSM.exists(), reason="SoftHSM is not installed")
def test_pkcs11_token_signs(model, monkeypatch):
    folder = model.parent
    keys = write_key(folder)
    (folder / "tokens").mkdir()
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder / 'tokens'}\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(folder / "softhsm2.conf"))
    for command in (
        "--init-token --free --so-pin 9753",
        f"--import {keys.key} --id A1 --token release",
    ):
        options = f"softhsm2-util {command} --label release --pin 8642"
        subprocess.run(options.split(), check=True)

    uri = f"pkcs11:token=release;object=release?module-path={SOFTHSM}&pin-value="
    Signer(f"{uri}8642").sign(model, folder / BUNDLE)
    check(model, folder / BUNDLE, keys.public)
    with pytest.raises(InvalidConfig) as refused:
        Signer(f"{uri}8641").sign(model, folder / BUNDLE)
    assert mentions(refused.value.message, "pkcs11:token=release", "CKR_PIN_INCORRECT")
    assert "8641" not in refused.value.message
