import asyncio
import base64
import hashlib
import hmac
import json
import time
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from standardwebhooks import Webhook

from kleinbild.providers.hooks import Bells, FalKeys, HookError, verify_bfl, verify_fal, verify_replicate

SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef01234567").decode()
NOW = 1_790_000_000.0


def of_bfl(body, secret="secret"):
    return {"X-BFL-Signature": f"sha256={hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()}"}


def of_replicate(body, moment=None):
    moment = datetime.fromtimestamp(moment or time.time(), tz=UTC)
    signature = Webhook(SECRET).sign("msg_1", moment, body.decode())
    return {
        "Webhook-Id": "msg_1",
        "Webhook-Timestamp": str(int(moment.timestamp())),
        "Webhook-Signature": signature,
    }


def of_fal(body, key, moment=NOW):
    parts = ("request-1", "user-1", str(int(moment)))
    message = "\n".join((*parts, hashlib.sha256(body).hexdigest())).encode()
    names = ("Request-Id", "User-Id", "Timestamp", "Signature")
    values = (*parts, key.sign(message).hex())
    return {f"X-Fal-Webhook-{name}": value for name, value in zip(names, values, strict=True)}


def jwks(*keys):
    return {"keys": [{"kty": "OKP", "crv": "Ed25519", "x": _base64url(key.public_key())} for key in keys]}


def _base64url(key):
    return base64.urlsafe_b64encode(key.public_bytes_raw()).decode().rstrip("=")


def now():
    return NOW


BFL = json.dumps({"id": "task-1", "status": "Ready"}).encode()
FAL = json.dumps({"request_id": "request-1", "status": "OK"}).encode()


def test_bfls_webhook_tells_of_its_task():
    assert verify_bfl(BFL, of_bfl(BFL), "secret") == "task-1"


@pytest.mark.parametrize("headers", [{}, {"X-BFL-Signature": "sha256=00"}, {"X-BFL-Signature": "é"}, of_bfl(BFL, "x")])
def test_a_webhook_that_is_not_bfls_is_none(headers):
    with pytest.raises(HookError):
        verify_bfl(BFL, headers, "secret")


@pytest.mark.parametrize("body", [b"", b"[]", b'{"id": 7}', b'{"id": ""}', b"{}", b"\xff"])
def test_a_webhook_that_tells_of_nothing_is_none(body):
    with pytest.raises(HookError):
        verify_bfl(body, of_bfl(body), "secret")


def test_replicates_webhook_tells_of_its_prediction():
    assert verify_replicate(BFL, of_replicate(BFL), SECRET) == "task-1"


@pytest.mark.parametrize("headers", [{}, of_replicate(FAL), {**of_replicate(BFL), "Webhook-Timestamp": "soon"}])
def test_a_webhook_that_is_not_replicates_is_none(headers):
    with pytest.raises(HookError):
        verify_replicate(BFL, headers, SECRET)


def test_an_old_webhook_of_replicate_is_none():
    with pytest.raises(HookError):
        verify_replicate(BFL, of_replicate(BFL, time.time() - 3600), SECRET)


def test_fals_webhook_tells_of_its_request_whichever_key_signed_it():
    key, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    assert verify_fal(FAL, of_fal(FAL, key), jwks(other, key), now=now) == "request-1"


@pytest.mark.parametrize("moment", [NOW - 301, NOW + 301])
def test_a_webhook_of_fal_of_another_time_is_none(moment):
    key = Ed25519PrivateKey.generate()
    with pytest.raises(HookError, match="time"):
        verify_fal(FAL, of_fal(FAL, key, moment), jwks(key), now=now)


def test_a_webhook_that_is_not_fals_is_none():
    key, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    headers = of_fal(FAL, key)
    wrong = [
        (FAL, headers, jwks(other)),
        (FAL, headers, {"keys": [{"x": 7}, {"x": "AA"}, {}]}),
        (FAL + b" ", headers, jwks(key)),
        (FAL, {**headers, "X-Fal-Webhook-Request-Id": "request-2"}, jwks(key)),
        (FAL, {**headers, "X-Fal-Webhook-Signature": "no hex"}, jwks(key)),
        (FAL, {**headers, "X-Fal-Webhook-Timestamp": "9" * 400}, jwks(key)),
        (FAL, {}, jwks(key)),
    ]
    for body, given, keys in wrong:
        with pytest.raises(HookError):
            verify_fal(body, given, keys, now=now)


class Published:
    def __init__(self, *keys):
        self.keys, self.num_asked, self.now = keys, 0, NOW

    async def fetch(self):
        self.num_asked += 1
        return json.dumps(jwks(*self.keys)).encode()

    def clock(self):
        return self.now


def test_fals_keys_are_fetched_once_a_day():
    key = Ed25519PrivateKey.generate()
    published = Published(key)
    keys = FalKeys(published.fetch, published.clock)
    for seconds, num_asked in ((0, 1), (3600, 1), (23 * 3600 + 1, 2)):
        published.now += seconds
        assert asyncio.run(keys.verify(FAL, of_fal(FAL, key, published.now))) == "request-1"
        assert published.num_asked == num_asked


def test_fals_keys_are_fetched_anew_but_not_often_if_none_fits():
    old, new = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    published = Published(old)
    keys = FalKeys(published.fetch, published.clock)
    for _ in range(3):
        with pytest.raises(HookError):
            asyncio.run(keys.verify(FAL, of_fal(FAL, new)))
    assert published.num_asked == 1
    published.keys, published.now = (new,), NOW + 299
    with pytest.raises(HookError):
        asyncio.run(keys.verify(FAL, of_fal(FAL, new, published.now)))
    published.now = NOW + 301
    assert asyncio.run(keys.verify(FAL, of_fal(FAL, new, published.now))) == "request-1"


@pytest.mark.parametrize("text", [b"", b"[]", b'{"keys": 1}'])
def test_keys_that_cannot_be_read_are_none(text):
    async def fetch():
        return text

    with pytest.raises(HookError):
        asyncio.run(FalKeys(fetch, now).verify(FAL, of_fal(FAL, Ed25519PrivateKey.generate())))


def test_a_bell_wakes_all_who_wait_for_that_work_and_nobody_else():
    bells = Bells()
    with bells.waiting("fal", "1") as first, bells.waiting("fal", "1") as second, bells.waiting("bfl", "1") as other:
        assert bells.ring("fal", "1")
        assert (first.is_set(), second.is_set(), other.is_set()) == (True, True, False)
    assert not bells.ring("fal", "1")


def test_what_is_told_of_before_anybody_waits_is_kept_and_not_without_bound():
    bells = Bells()
    for number in range(300):
        assert not bells.ring("fal", str(number))
    with bells.waiting("fal", "299") as last, bells.waiting("fal", "0") as first:
        assert (last.is_set(), first.is_set()) == (True, False)
    with bells.waiting("fal", "299") as again:
        assert not again.is_set()
