"""Checkpoints: the examples of C2SP, agreement with another implementation, and texts
that are no checkpoints.
"""

import hashlib
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import example, given
from hypothesis import strategies as st

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.store.audit_keys import Keys, parse_keys, read_key_file
from mlflow_deploy_plugin.core.store.checkpoints import (
    Checkpoint,
    NoteSigner,
    encoded,
    parse_checkpoint,
    parse_head,
    parse_signer,
)
from mlflow_deploy_plugin.core.store.merkle import Edge
from tests.support.refusals import refused

COSIGNED = """\
example.com/behind-the-sofa
20852163
CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=
— witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==
"""  # noqa: E501
"""The example of https://c2sp.org/tlog-cosignature."""
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
NOW = datetime(2026, 11, 20, 8, tzinfo=UTC)
LOG = NoteSigner("onnxserve/store/key", KEY.public_key(), NoteSigner.LOG)
WITNESS = NoteSigner("auditors.example/witness", KEY.public_key(), NoteSigner.WITNESS)
ROOT = bytes(range(32))


def signed(size=7, extensions=()):
    checkpoint = Checkpoint(LOG.name, size, ROOT, extensions)
    return checkpoint.with_signatures(
        LOG.sign(checkpoint.body, KEY.sign), WITNESS.sign(checkpoint.body, KEY.sign, NOW)
    )


def is_refused(parse):
    try:
        parse()
    except ValueError:
        return True
    return False


def test_checkpoint_and_key_of_c2sp_are_read():
    checkpoint = parse_checkpoint(COSIGNED)
    assert (checkpoint.origin, checkpoint.size) == ("example.com/behind-the-sofa", 20852163)
    assert checkpoint.text == COSIGNED
    assert [line.split()[0] for line in checkpoint.signatures] == [
        "example.com/behind-the-sofa",
        "witness.example.com/w1",
    ]
    key = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
    assert parse_signer(f" {key}\n", "--witness").text == key


@pytest.mark.parametrize("extensions", [(), ("retired", "ü +")])
def test_another_implementation_verifies_checkpoint(tlog, extensions):
    checkpoint = signed(extensions=extensions)
    note = tlog.parse_note(checkpoint.text)
    witness = tlog.parse_vkey(WITNESS.text)

    result = tlog.verify_checkpoint(note, tlog.parse_vkey(LOG.text), [witness], quorum=1)

    assert (result.log_ok, result.ok) == (True, True)
    cosignature = note.signatures[1].signature
    arguments = (WITNESS.name, KEY.public_key(), LOG.name, 7, ROOT, extensions)
    assert tlog.verify_cosignature(cosignature, *arguments)


def test_checkpoint_of_another_implementation_is_verified(tlog):
    foreign = tlog.Checkpoint(origin=LOG.name, size=3, root=ROOT, extension_lines=("a b",))
    note = tlog.sign_checkpoint(foreign, KEY, LOG.name)
    time = int(NOW.timestamp())
    arguments = (KEY, WITNESS.name, time, LOG.name, 3, ROOT, ("a b",))
    _, line = tlog.sign_cosignature(*arguments)

    checkpoint = parse_checkpoint(replace(note, signatures=(*note.signatures, line)).serialise())

    assert LOG.signed_at(checkpoint) == datetime(1970, 1, 1, tzinfo=UTC)
    assert WITNESS.signed_at(checkpoint) == NOW
    assert (LOG.text, WITNESS.text) == (
        tlog.format_vkey(tlog.vkey_from_ed25519(LOG.name, KEY.public_key().public_bytes_raw())),
        tlog.format_vkey(tlog.cosignature_vkey(WITNESS.name, KEY.public_key())),
    )


def test_signature_of_another_checkpoint_does_not_count():
    checkpoint = signed()
    log, witness = checkpoint.signatures
    raw = log.split()[1]
    for changed in (
        replace(checkpoint, size=8),
        replace(checkpoint, root=bytes(32)),
        replace(checkpoint, extensions=("more",)),
        replace(checkpoint, signatures=()),
        replace(checkpoint, signatures=(log, log, witness, witness)),
        replace(
            checkpoint, signatures=(f"{WITNESS.name} {raw}", f"{LOG.name} {witness.split()[1]}")
        ),
        replace(checkpoint, signatures=(log[:-8], f"{witness[:-8]}AAA=")),
    ):
        assert (LOG.signed_at(changed), WITNESS.signed_at(changed)) == (None, None)
    renamed = NoteSigner("onnxserve/store/other", LOG.key, NoteSigner.LOG)
    assert renamed.signed_at(checkpoint) is None
    late = replace(
        checkpoint, signatures=(WITNESS.sign(checkpoint.body, KEY.sign, NOW.replace(9999)),)
    )
    assert WITNESS.signed_at(late) == NOW.replace(9999)


def test_new_cosignature_replaces_that_of_its_key():
    checkpoint = signed()
    log, _ = checkpoint.signatures
    later = WITNESS.sign(checkpoint.body, KEY.sign, NOW.replace(hour=9))
    other = replace(WITNESS, name="other").sign(checkpoint.body, KEY.sign, NOW)

    cosigned = checkpoint.with_signatures(later, other)

    assert cosigned.signatures == (log, later, other)
    assert parse_checkpoint(cosigned.text) == cosigned


def test_contradictory_head_is_refused():
    edge = Edge().add(ROOT).add(ROOT).add(ROOT)
    note = replace(signed(3), root=edge.root).text
    first, last = map(encoded, edge.hashes)
    assert parse_head(note, f"{first} {last}").edge == edge
    for hashes in (f"{last} {first}", first, "", f"{first} {last} {last}", "ü"):
        assert is_refused(lambda hashes=hashes: parse_head(note, hashes))


TEXT = signed(extensions=("extension",)).text


@given(st.integers(0, len(TEXT)), st.integers(0, len(TEXT)), st.text(max_size=3))
@example(0, 0, "\ud800")
def test_changed_checkpoint_is_refused_or_unsigned(start, end, text):
    changed = TEXT[:start] + text + TEXT[end:]
    try:
        checkpoint = parse_checkpoint(changed)
    except ValueError:
        return
    assert checkpoint.text == changed
    if LOG.signed_at(checkpoint):
        assert checkpoint.body == parse_checkpoint(TEXT).body


@given(st.text(st.sampled_from("a\n—+ =0é\t\r\x00\u2028\ud800AAA="), max_size=60))
def test_other_text_is_refused(text):
    assert is_refused(lambda: parse_checkpoint(text))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a+b",
        LOG.text.replace("+", "+0", 1),
        LOG.text[:-4],
        LOG.text.replace("/", " ", 1),
        f"{LOG.text}A===",
        "a+00000000+",
        "\ud800+00000000+AQ==",
        "a+58ab57b1+AQ==",
        replace(LOG, kind=2).text,
        "a+00000000+AjAKMAUGAyoDBAMBAA==",  # a DER of an unknown algorithm
    ],
)
def test_malformed_key_of_witness_is_refused(text):
    with refused(InvalidConfig, "--witness", "NAME+ID+KEY"):
        parse_signer(text, "--witness")


def test_fips_provider_without_ed25519_signs_checkpoint_with_p256(tmp_path, monkeypatch):
    def refuse():
        raise UnsupportedAlgorithm("ed25519")

    monkeypatch.setattr(Ed25519PrivateKey, "generate", refuse)
    keys = read_key_file(tmp_path / "audit.pem")
    checkpoint = keys.sign_checkpoint("onnxserve/store", Edge())
    public = parse_keys(keys.public_pem(), "keys.pem")
    signer = public.signer_of(checkpoint)
    assert signer
    der = signer.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert (signer.kind, signer.key_id) == (NoteSigner.ECDSA_LOG, hashlib.sha256(der).digest()[:4])
    assert parse_signer(signer.text, "--log").signed_at(checkpoint)
    assert public.signer_of(replace(checkpoint, size=1)) is None
    assert public.is_signed("text", keys.key_id, keys.sign("text"))
    assert Keys({}).signer_of(checkpoint) is None
