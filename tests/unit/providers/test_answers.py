"""What all services that answer in the request have in common: what is lost, and what no service should have said."""

import httpx2
import pytest

from kleinbild.providers.answers import quoted, said
from kleinbild.providers.hosted import ProviderError
from kleinbild.providers.openai import OpenAI
from kleinbild.providers.stability import Stability
from kleinbild.providers.together import Together
from tests.unit.providers.pictures import in_base64, noise, picture
from tests.unit.providers.service import KEY, Broken, Service, call, failed, outcome, started, used

MODELS = {OpenAI: "gpt-image-2", Together: "black-forest-labs/FLUX.2-dev", Stability: "sd3.5-medium"}
LOST = [
    httpx2.ReadError("cut"),
    httpx2.WriteError("cut"),
    httpx2.RemoteProtocolError("cut"),
    httpx2.ReadTimeout("slow"),
    httpx2.WriteTimeout("slow"),
]
NEVER_SENT = [httpx2.ConnectError("no such host"), httpx2.ConnectTimeout("slow"), httpx2.PoolTimeout("full")]


def answer(*texts, finish="SUCCESS"):
    """All three services' at once: each reads its own fields."""
    data = [{"index": index, "b64_json": text} for index, text in enumerate(texts)]
    return {"data": data, "image": texts[0] if texts else None, "seed": 5, "finish_reason": finish}


@pytest.fixture(params=MODELS, ids=lambda kind: kind.__name__)
def kind(request):
    return request.param


def refusal(kind, response, **changed):
    return outcome(failed(kind, Service(response), call(MODELS[kind], **changed)))


def test_the_answer_that_the_broken_ones_are_made_of_is_taken(kind):
    file = noise()
    service = Service(httpx2.Response(200, json=answer(in_base64(file))))
    assert [each.file for each in started(kind, service, call(MODELS[kind])).pictures] == [file]
    assert service.request.headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("lost", LOST, ids=lambda lost: type(lost).__name__)
def test_after_a_lost_answer_nobody_knows(kind, lost):
    cause = "timeout" if isinstance(lost, httpx2.TimeoutException) else "connection"
    assert refusal(kind, lost) == (cause, "unknown", None)


@pytest.mark.parametrize("lost", NEVER_SENT, ids=lambda lost: type(lost).__name__)
def test_what_never_left_is_not_billed(kind, lost):
    cause = "timeout" if isinstance(lost, httpx2.TimeoutException) else "connection"
    assert refusal(kind, lost) == (cause, "refused", False)


@pytest.mark.parametrize(
    "end", [httpx2.ReadError("cut"), httpx2.RemoteProtocolError("cut"), httpx2.ReadTimeout("slow")]
)
def test_half_an_answer_of_success_is_of_accepted_work(kind, end):
    assert refusal(kind, httpx2.Response(200, stream=Broken(b'{"data": [', end))) == ("bad_answer", "accepted", None)


def test_an_answer_that_drips_is_waited_for_no_longer_than_there_is_time(kind):
    dripping = httpx2.Response(200, stream=Broken(b'{"data": [', None))
    assert refusal(kind, dripping, seconds=0.05) == ("bad_answer", "accepted", None)


def test_half_a_refusal_is_a_refusal(kind):
    half = httpx2.Response(429, headers={"retry-after": "3"}, stream=Broken(b'{"err', httpx2.ReadError("cut")))
    told = failed(kind, Service(half), call(MODELS[kind]))
    assert (*outcome(told), told.retry_after) == ("rate_limited", "refused", False, 3.0)


def test_an_answer_packed_wrongly_is_a_bad_answer(kind):
    packed = Broken(b"no gzip", httpx2.DecodingError("no gzip"))
    assert refusal(kind, httpx2.Response(200, stream=packed)) == ("bad_answer", "accepted", None)


@pytest.mark.parametrize(
    "body", [b"", b"OK", b"<html>", b"[]", b"null", b"7", b'"x"', b"{}", b'{"data": []}', b"\xff", b"[" * 10**5]
)
def test_an_answer_without_a_picture_is_a_bad_answer(kind, body):
    assert refusal(kind, httpx2.Response(200, content=body)) == ("bad_answer", "accepted", None)


@pytest.mark.parametrize("item", [{}, {"b64_json": 7}, {"b64_json": ""}, {"url": None}, "text", None])
def test_an_item_without_a_picture_is_a_bad_answer(kind, item):
    assert refusal(kind, httpx2.Response(200, json={"data": [item]})) == ("bad_answer", "accepted", None)


@pytest.mark.parametrize(
    "text",
    ["*", in_base64(noise()[:2000]), in_base64(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), in_base64(b"%PDF-1.7")],
    ids=["no base64", "half a picture", "svg", "pdf"],
)
def test_what_is_no_picture_is_a_bad_answer(kind, text):
    assert refusal(kind, httpx2.Response(200, json=answer(text))) == ("bad_answer", "accepted", None)


@pytest.mark.parametrize(("asked", "given"), [(1, 2), (2, 1), (3, 0)])
@pytest.mark.parametrize("kind", [OpenAI, Together])
def test_another_number_of_pictures_is_a_bad_answer(kind, asked, given):
    response = httpx2.Response(200, json=answer(*[in_base64(picture())] * given))
    assert refusal(kind, response, count=asked) == ("bad_answer", "accepted", None)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_after_a_redirect_nobody_knows_and_nobody_follows(kind, status):
    service = Service(httpx2.Response(status, headers={"location": "https://elsewhere.test/"}))
    assert outcome(failed(kind, service, call(MODELS[kind]))) == ("bad_answer", "unknown", None)
    assert len(service.requests) == 1


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, ("credentials", "refused", False)),
        (402, ("credit", "refused", False)),
        (404, ("not_found", "refused", False)),
        (413, ("invalid", "refused", False)),
        (429, ("rate_limited", "refused", False)),
        (500, ("overloaded", "unknown", None)),
        (502, ("overloaded", "unknown", None)),
        (503, ("overloaded", "refused", False)),
        (504, ("timeout", "unknown", None)),
        (524, ("overloaded", "unknown", None)),
    ],
)
@pytest.mark.parametrize("body", [b"", b"<html>blocked</html>", b"[1]", b'{"error": null}'])
def test_a_status_alone_tells_enough(kind, status, expected, body):
    assert refusal(kind, httpx2.Response(status, content=body)) == expected


def test_nothing_can_be_collected_or_cancelled(kind):
    service = Service(httpx2.Response(200))
    with pytest.raises(ProviderError) as caught:
        used(kind, service, lambda provider: provider.collect({}, call(MODELS[kind])))
    assert outcome(caught.value) == ("not_found", "unknown", None)
    assert used(kind, service, lambda provider: provider.cancel({})) == "impossible"
    assert service.requests == []


@pytest.mark.parametrize(("status", "cause"), [(401, "credentials"), (429, "rate_limited"), (503, "overloaded")])
def test_a_probe_tells_why_the_service_cannot_be_used(kind, status, cause):
    with pytest.raises(ProviderError) as caught:
        used(kind, Service(httpx2.Response(status)), lambda provider: provider.probe())
    assert caught.value.cause == cause


def test_a_probe_of_what_cannot_be_reached_bought_nothing(kind):
    with pytest.raises(ProviderError) as caught:
        used(kind, Service(httpx2.ConnectError("no")), lambda provider: provider.probe())
    assert outcome(caught.value) == ("connection", "refused", False)


def test_without_a_key_none_is_sent(kind):
    service = Service(httpx2.Response(401))
    failed(kind, service, call(MODELS[kind]), key=None)
    assert "authorization" not in service.request.headers


@pytest.mark.parametrize(
    ("text", "host", "safe"),
    [
        ("size 7x7 is not allowed", "api.openai.com", "size 7x7 is not allowed"),
        ("see https://cdn.test/a?Signature=b now", "api.openai.com", "see … now"),
        ("see docs.openai.com/a, please", "api.openai.com", "see … please"),
        ("at 127.0.0.1:9000/v1 failed", "127.0.0.1", "at … failed"),
        ("at gpu7:9000 failed", "gpu7", "at … failed"),
        ("of org-Ab12cd34 and proj_12345678\n\tand  sk-abcd1234", "x.test", "of … and … and …"),
        ("long " * 100, "x.test", ("long " * 100)[:300]),
    ],
)
def test_quoted_words_hold_no_address_and_no_name_of_an_account(text, host, safe):
    assert quoted(text, host) == safe


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": {"message": "No.", "code": "c", "type": "t"}}, "c No."),
        ({"error": {"message": "No.", "code": None, "type": "t"}}, "t No."),
        ({"error": {"message": "No.", "code": 400}}, "400 No."),
        ({"error": "No."}, "No."),
        ({"id": "1", "name": "bad_request", "errors": ["a", "b"]}, "bad_request a; b"),
        ({"name": "unauthorized", "message": "No."}, "unauthorized No."),
        ({"detail": [{"loc": ["n"], "msg": "too many"}]}, "too many"),
        ({"detail": f"not {KEY}"}, "not …"),
        ({"error": {"message": {"a": 1}, "code": []}}, ""),
        (None, ""),
        ("No.", ""),
    ],
)
def test_errors_of_many_shapes_are_read(body, words):
    assert str(said(body, KEY)) == words
