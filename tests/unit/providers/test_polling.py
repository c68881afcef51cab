import asyncio

import httpx2
import pytest

from kleinbild.providers.hosted import Expected, ProviderError
from kleinbild.providers.polling import Clock, Deadline, Look, Pace, pace_of, poll
from tests.unit.providers.taking_on import Time, failing, run, told

HANDLE = {"id": "7"}


class Polled:
    """Answers one poll after the other: a status, a status with headers, or an exception."""

    def __init__(self, *answers):
        self.time, self.answers, self.seconds = Time(), list(answers), []

    async def ask(self, seconds):
        self.seconds.append(seconds)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        status, headers = answer if isinstance(answer, tuple) else (answer, {})
        return httpx2.Response(status, headers=headers)

    def read(self, response):
        return "done" if response.status_code == 200 else Look.PENDING

    def poll(self, seconds=600.0, **options):
        deadline = Deadline(seconds, self.time.clock)
        return poll(self.ask, self.read, handle=HANDLE, deadline=deadline, **options)


def failed(cause, acceptance="accepted"):
    return ProviderError("no", cause=cause, acceptance=acceptance, detail="ConnectError: no")


def test_it_is_asked_soon_and_then_ever_less_often_up_to_a_limit():
    polled = Polled(*[202] * 9, 200)
    assert run(polled.poll()) == "done"
    assert polled.time.waits[:3] == pytest.approx([0.4, 0.4, 0.6])
    ratios = [after / before for before, after in zip(polled.time.waits[1:], polled.time.waits[2:], strict=False)]
    assert all(1 <= ratio <= 1.5 + 1e-9 for ratio in ratios)
    assert max(polled.time.waits) == 5.0


@pytest.mark.parametrize(
    ("soonest", "usual", "waits"),
    [(0.3, 0.5, [0.3, 0.1, 0.15]), (2.5, 4.5, [2.5, 0.5, 0.75]), (20.0, 60.0, [20.0, 5.0, 5.0])],
    ids=["quick", "usual", "slow"],
)
def test_it_is_asked_from_when_it_may_be_done_and_as_often_as_is_worth_it(soonest, usual, waits):
    polled = Polled(202, 202, 200)
    run(polled.poll(pace=pace_of(Expected(soonest, usual))))
    assert polled.time.waits == pytest.approx(waits)


@pytest.mark.parametrize(("soonest", "first"), [(0.0, 0.1), (40.0, 30.0)])
def test_whatever_is_expected_the_first_poll_is_neither_at_once_nor_late(soonest, first):
    assert pace_of(Expected(soonest, 60.0)).first == first


def test_what_has_passed_is_expected_no_more():
    assert Expected(2.0, 5.0).after(3.0) == Expected(0.0, 2.0)


def test_where_a_webhook_is_to_come_it_is_asked_less_often():
    for expected in (None, Expected(0.3, 0.5)):
        assert pace_of(expected, hooked=True) == Pace(first=2.0, interval=2.0, longest=15.0)
    assert pace_of(Expected(20.0, 60.0), hooked=True).first == 20.0


def test_who_is_woken_asks_at_once_and_soon_again():
    polled = Polled(202, 200)
    pace, asked = Pace(first=600.0, interval=600.0), []

    async def woken_once():
        event = asyncio.Event()
        event.set()
        slept = Clock(now=lambda: 0.0, sleep=lambda seconds: asked.append(seconds) or asyncio.sleep(seconds / 100))
        return await poll(
            polled.ask, polled.read, handle=HANDLE, deadline=Deadline(1000.0, slept), pace=pace, woken=event
        )

    assert run(woken_once()) == "done"
    assert asked == [600.0, 0.4]


def test_a_service_that_asks_for_time_gets_it():
    polled = Polled((202, {"retry-after": "7"}), (429, {"retry-after": "9"}), (429, {"retry-after-ms": "100"}), 200)
    run(polled.poll())
    assert polled.time.waits[1:3] == [7.0, 9.0]
    assert polled.time.waits[3] > 0.1


@pytest.mark.parametrize(
    "failure",
    [failed("connection"), failed("connection", "refused"), failed("timeout"), 408, 429, 500, 502, 503, 504],
)
def test_a_poll_that_fails_says_nothing_of_the_work(failure):
    assert run(Polled(failure, 202, failure, 200).poll()) == "done"


def test_at_the_deadline_the_work_goes_on_without_us():
    error = failing(Polled(202).poll(seconds=20))
    assert told(error) == ("timeout", "accepted", None)
    assert error.handle == HANDLE
    assert "202" in error.detail


def test_the_last_look_is_at_the_deadline_itself():
    polled = Polled(202)
    failing(polled.poll(seconds=20))
    assert polled.time.seconds == 20
    assert run(Polled(200).poll(seconds=0)) == "done"


def test_a_poll_does_not_outlast_the_deadline():
    polled = Polled(202)
    failing(polled.poll(seconds=9))
    assert max(polled.seconds) < 9
    assert polled.seconds[-1] == 1.0


def test_failures_up_to_the_deadline_are_told():
    error = failing(Polled(failed("connection", "refused")).poll(seconds=3))
    assert told(error) == ("timeout", "accepted", None)
    assert "ConnectError" in error.detail


@pytest.mark.parametrize("status", [404, 410])
def test_work_that_the_service_never_knows_is_lost(status):
    polled = Polled(status)
    error = failing(polled.poll())
    assert told(error) == ("not_found", "unknown", None)
    assert error.handle == HANDLE
    assert len(polled.seconds) == 3


def test_work_that_is_not_known_for_a_moment_is_not_lost():
    assert run(Polled(404, 404, 202, 404, 404, 200).poll()) == "done"


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_does_not_fit_any_more_ends_the_polling(status):
    polled = Polled(202, status)
    error = failing(polled.poll())
    assert told(error) == ("credentials", "accepted", None)
    assert (error.handle, error.status, len(polled.seconds)) == (HANDLE, status, 2)


@pytest.mark.parametrize("status", [302, 400, 422])
def test_an_answer_that_makes_no_sense_ends_the_polling(status):
    assert told(failing(Polled(status).poll())) == ("bad_answer", "accepted", None)


def test_an_address_that_must_not_be_asked_ends_the_polling():
    error = failing(Polled(failed("bad_answer")).poll())
    assert (error.cause, error.handle) == ("bad_answer", HANDLE)
