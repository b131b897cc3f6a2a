"""The sources of a caller's key, its permissions, and its end of validity."""

import base64
import json
import math
import os
import socket
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from jwt.algorithms import ECAlgorithm

from mlflow_deploy_plugin.core.errors import NotReady, OnnxserveError, ScopeMissing, Unauthenticated
from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.core.statedir.files import JWKS, KEYS, LOCAL_KEY, make_local_key
from mlflow_deploy_plugin.core.statedir.models import KeyEntry
from mlflow_deploy_plugin.serve.inference.auth import Authenticator
from tests.support.clocks import Clock
from tests.support.keys import write_keys

NOON = 1_800_000_000.0
WITH_KEYS = ServerSpec(api_keys=True)
WITH_CERTIFICATES = ServerSpec(ca_certs="ca.pem", certfile="server.pem", keyfile="server.key")


@pytest.fixture
def clock():
    return Clock(NOON)


@pytest.fixture
def uptime():
    return Clock(5.0)


@pytest.fixture
def auth(tmp_path, clock, uptime):
    shop = KeyEntry(name="shop", scopes=("infer",), endpoints=("flights",), expires_at=NOON + 60)
    write_keys(tmp_path, {"shop": shop, "ops": KeyEntry(name="ops", scopes=("admin", "read"))})
    return Authenticator(tmp_path, WITH_KEYS, clock=clock, monotonic=uptime)


def test_first_concurrent_requests_know_the_keys(auth, monkeypatch):
    read = auth._read_keys
    barrier = threading.Barrier(3)
    go_on = threading.Event()

    def slow():
        barrier.wait(10)
        go_on.wait(10)
        read()

    monkeypatch.setattr(auth, "_read_keys", slow)
    with ThreadPoolExecutor(2) as threads:
        callers = [threads.submit(auth.require, bearer("ops"), "read") for _ in range(2)]
        barrier.wait(10)
        go_on.set()
        assert [caller.result().name for caller in callers] == ["ops", "ops"]


def test_unreadable_keys_keep_the_previous_ones(auth, uptime, tmp_path, caplog):
    assert auth.require(bearer("ops"), "read").name == "ops"
    (tmp_path / KEYS).write_text('{"keys": ')
    for _ in range(2):
        uptime.now += 2
        assert auth.require(bearer("ops"), "read").name == "ops"
    assert ["cannot be read" in record.getMessage() for record in caplog.records] == [True]


def test_unreadable_keys_do_not_disable_the_local_key(auth, tmp_path):
    (tmp_path / KEYS).write_text('{"keys": ')
    make_local_key(tmp_path)
    assert auth.require(bearer((tmp_path / LOCAL_KEY).read_text()), "admin").name == "this machine"


def bearer(key):
    return {"authorization": f"Bearer {key}"}


def basic(text):
    return {"authorization": f"Basic {base64.b64encode(text.encode()).decode()}"}


@pytest.mark.parametrize(
    "headers",
    [bearer("ops"), {"authorization": "bearer  ops "}, basic("anybody:ops"), basic(":ops")],
)
def test_key_may_be_bearer_or_password(auth, headers):
    assert auth.require(headers, "read").name == "ops"


def test_long_user_names_take_no_memory(auth):
    auth.require(bearer("ops"), "read")
    tracemalloc.start()
    for number in range(500):
        auth.require(basic(f"{number:06000}:ops"), "read")
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 500_000


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer("Ops"),
        bearer(""),
        bearer("\udcff"),
        basic("ops"),
        {"authorization": "Basic ?"},
        {"authorization": "Digest ops"},
        {"authorization": "onnxserve_ops"},
    ],
    ids=repr,
)
def test_request_without_a_key_is_refused(auth, headers):
    with pytest.raises(Unauthenticated, match="onnxserve keys create") as refused:
        auth.require(headers, "read")
    assert "ops" not in refused.value.message, "a part of what may be a key"


@pytest.mark.parametrize(
    ("key", "scope", "endpoint"),
    [
        ("ops", "infer", "flights"),
        ("shop", "read", "flights"),
        ("shop", "infer", "taxis"),
        ("shop", "infer", None),
    ],
)
def test_key_of_another_scope_is_refused(auth, key, scope, endpoint):
    with pytest.raises(ScopeMissing, match=f"'{key}'"):
        auth.require(bearer(key), scope, endpoint)


def holds(auth, key, endpoint="flights"):
    try:
        auth.require(bearer(key), "infer", endpoint)
    except OnnxserveError:
        return False
    return True


@pytest.mark.parametrize(
    ("key", "certificate", "missing"),
    [("shop", "", "client certificate"), ("", "laptop", "key"), ("", "", "client certificate")],
)
def test_key_and_certificate_are_both_required(tmp_path, key, certificate, missing):
    write_keys(tmp_path, {"shop": KeyEntry(name="shop", scopes=("infer",))})
    make_local_key(tmp_path)
    auth = Authenticator(tmp_path, WITH_CERTIFICATES.model_copy(update={"api_keys": True}))
    assert auth.require(bearer("shop"), "infer", certificate="laptop").name == "shop"
    local = (tmp_path / LOCAL_KEY).read_text()
    assert auth.require(bearer(local), "admin").name == "this machine"
    with pytest.raises(Unauthenticated, match=f"requires a {missing}"):
        auth.require(bearer(key) if key else {}, "infer", certificate=certificate)


def test_certificate_replaces_the_key(tmp_path):
    auth = Authenticator(tmp_path, WITH_CERTIFICATES)
    entry = auth.require({}, "admin", certificate="laptop")
    assert (entry.name, entry.counted_as) == ("laptop", "a certificate")
    with pytest.raises(Unauthenticated, match="client certificate"):
        auth.require(bearer("nobody"), "infer")


def test_expired_key_is_refused(auth, clock):
    assert holds(auth, "shop")
    clock.now += 60
    with pytest.raises(Unauthenticated, match=r"'shop' .*expired"):
        auth.require(bearer("shop"), "infer", "flights")


def test_key_changes_are_seen_within_a_second(auth, uptime, tmp_path):
    assert (holds(auth, "shop"), holds(auth, "new")) == (True, False)
    write_keys(tmp_path, {"new": KeyEntry(name="new", scopes=("infer",))})
    uptime.now += 1
    assert (holds(auth, "shop"), holds(auth, "new")) == (False, True)


def test_revocation_survives_a_clock_set_back(auth, clock, uptime, tmp_path):
    assert holds(auth, "shop")
    clock.now -= 3600
    write_keys(tmp_path, {})
    uptime.now += 1
    assert not holds(auth, "shop")


def test_only_the_local_key_works_without_keys(tmp_path):
    assert not holds(Authenticator(tmp_path, WITH_KEYS), "shop")
    make_local_key(tmp_path)
    key = tmp_path / "local.key"
    assert os.stat(key).st_mode & 0o777 == 0o600
    auth = Authenticator(tmp_path, WITH_KEYS)
    assert holds(auth, key.read_text())
    assert not holds(auth, "")


ISSUER = "https://login.example"
AUDIENCE = "onnxserve"
WITH_TOKENS = ServerSpec(jwt_issuer=ISSUER, jwt_audience=AUDIENCE)
SIGNING = generate_private_key(SECP256R1())


@pytest.fixture
def of_issuer(tmp_path):
    key = {**ECAlgorithm.to_jwk(SIGNING.public_key(), as_dict=True), "kid": "monday"}
    (tmp_path / JWKS).write_text(json.dumps({"keys": [key]}))
    return Authenticator(tmp_path, WITH_TOKENS)


def token(key=SIGNING, kid="monday", algorithm="ES256", **claims):
    moment = int(time.time())
    document = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "shop",
        "exp": moment + 60,
        "scope": "openid infer",
        **claims,
    }
    return jwt.encode(
        {k: v for k, v in document.items() if v is not None}, key, algorithm, headers={"kid": kid}
    )


def test_wrong_tokens_before_the_key_fetch_nothing(of_issuer, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", pytest.fail)
    other = generate_private_key(SECP256R1())
    for number in range(2000):
        wrong = token(other, kid="monday" if number % 2 else f"k{number}", jti=str(number))
        assert of_issuer.is_stranger(bearer(wrong))


def test_token_allows_its_scope(of_issuer):
    sent = bearer(token())
    for _ in range(2):  # The key is verified once and then cached.
        # No key has this name.
        assert of_issuer.require(sent, "infer", "flights").name == "shop@login.example"
    limited = bearer(token(scope=None, scp=["infer"], onnxserve_endpoints=["flights"]))
    assert of_issuer.require(limited, "infer", "flights").endpoints == ("flights",)


@pytest.mark.parametrize(
    ("claims", "scope", "endpoint", "words"),
    [
        ({}, "read", None, r"'shop@login\.example' .*infer.*read"),
        ({"onnxserve_endpoints": ["flights"]}, "infer", "taxis", "'taxis'"),
        ({"scope": "openid"}, "infer", None, "nothing here.*infer"),
        ({"onnxserve_endpoints": []}, "infer", "flights", "this needs infer"),
    ],
)
def test_token_of_another_scope_is_refused(of_issuer, claims, scope, endpoint, words):
    with pytest.raises(ScopeMissing, match=words):
        of_issuer.require(bearer(token(**claims)), scope, endpoint)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"exp": 1}, "expired"),
        ({"aud": "others"}, "audience"),
        ({"iss": "https://elsewhere"}, "issuer"),
        ({"exp": None}, '"exp"'),
        ({"kid": "sunday"}, "'sunday'"),
        ({"key": generate_private_key(SECP256R1())}, "signature verification failed"),
        ({"key": "x" * 64, "algorithm": "HS256"}, "alg value is not allowed"),
        ({"key": None, "algorithm": "none"}, "alg value is not allowed"),
        ({"key": ed25519.Ed25519PrivateKey.generate(), "algorithm": "EdDSA"}, "another kind"),
        ({"key": rsa.generate_private_key(65537, 2048), "algorithm": "RS256"}, "another kind"),
        ({"scope": 7}, "not lists of names"),
        ({"onnxserve_endpoints": "flights"}, "not lists of names"),
    ],
)
def test_invalid_claim_or_signature_is_refused(of_issuer, changed, message):
    with pytest.raises(Unauthenticated, match=message):
        of_issuer.require(bearer(token(**changed)), "infer")


@pytest.mark.parametrize("claim", ["exp", "nbf", "iat"])
@pytest.mark.parametrize(
    "seconds",
    [10**400, -(10**400), math.nan, math.inf, -math.inf, True, False, "soon", "9" * 400, [], {}],
    ids=repr,
)
def test_token_without_numeric_times_is_refused(of_issuer, claim, seconds):
    with pytest.raises(Unauthenticated, match="not valid"):
        of_issuer.require(bearer(token(**{claim: seconds})), "infer")


def test_token_times_may_have_fractions(of_issuer):
    now = time.time()
    entry = of_issuer.require(bearer(token(exp=now + 60.5, nbf=now - 0.5, iat=now - 0.5)), "infer")
    assert entry.expires_at == now + 90.5


@pytest.mark.parametrize("sent", ["a.b.c", "..", "é.é.é", "eyJhbGciOiJFUzI1NiJ9.e30.x"])
def test_malformed_token_is_refused(of_issuer, sent):
    with pytest.raises(Unauthenticated):
        of_issuer.require(bearer(sent), "infer")


def test_cached_token_expires(tmp_path, of_issuer, clock):
    clock.now = time.time()
    auth = Authenticator(tmp_path, WITH_TOKENS, clock=clock)
    sent = bearer(token())
    auth.require(sent, "infer")
    clock.now += 91  # its 60 s, and 30 s of tolerance
    with pytest.raises(Unauthenticated, match=r"'shop@login\.example' .*expired"):
        auth.require(sent, "infer")


def test_callers_wait_for_issuer_keys(tmp_path):
    with pytest.raises(
        NotReady, match="not been fetched"
    ):  # Its client may retry with the same token.
        Authenticator(tmp_path, WITH_TOKENS).require(bearer(token()), "infer")
