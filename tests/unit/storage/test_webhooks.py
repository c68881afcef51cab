from dataclasses import replace

import pytest

from kleinbild.storage import webhooks
from kleinbild.storage.webhooks import Delivery, Endpoint

pytestmark = pytest.mark.anyio

FIRST = Endpoint("wh_1", "alpha", "https://a.example/", "sealed-1", 100.0)
SECOND = Endpoint("wh_2", "alpha", "https://b.example/", "sealed-2", 200.0, events=("job.completed",))
OTHERS = Endpoint("wh_3", "beta", "https://c.example/", "sealed-3", 300.0)


@pytest.fixture
async def connection(database):
    async with database.write() as connection:
        for endpoint in (FIRST, SECOND, OTHERS):
            await webhooks.add(connection, endpoint)
        yield connection


async def test_endpoints_come_back_as_they_were(connection):
    assert await webhooks.find(connection, "wh_1") == FIRST
    assert await webhooks.of_project(connection, "alpha") == [SECOND, FIRST]
    assert await webhooks.count(connection, "alpha") == 2
    assert await webhooks.find(connection, "wh_9") is None


async def test_another_projects_endpoint_is_none(connection):
    assert await webhooks.find(connection, "wh_3", "alpha") is None
    assert not await webhooks.remove(connection, "wh_3", "alpha")
    assert not await webhooks.rotate(connection, "wh_3", "alpha", "mine", 9e9)
    assert await webhooks.find(connection, "wh_3", "beta") == OTHERS


async def test_rotation_keeps_the_secret_before(connection):
    assert await webhooks.rotate(connection, "wh_1", "alpha", "sealed-new", 500.0)
    rotated = replace(FIRST, secret="sealed-new", previous_secret="sealed-1", previous_until=500.0)
    assert await webhooks.find(connection, "wh_1") == rotated


async def test_what_an_endpoint_wants(connection):
    await webhooks.disable(connection, "wh_1", 400.0)
    await webhooks.disable(connection, "wh_1", 500.0)  # the first time counts
    disabled = await webhooks.find(connection, "wh_1")
    assert disabled.disabled_at == 400.0
    assert not disabled.wants("job.completed")
    await webhooks.enable(connection, "wh_1")
    assert (await webhooks.find(connection, "wh_1")).wants("job.failed")
    assert SECOND.wants("job.completed")
    assert not SECOND.wants("job.failed")


async def test_a_delivery_is_counted_and_goes_with_its_endpoint(connection):
    delivery = Delivery("evt_1", "wh_1", "job_1", "job.completed", 100.0)
    await webhooks.add_delivery(connection, delivery)
    await webhooks.attempted(connection, "evt_1", None, 200.0)
    await webhooks.attempted(connection, "evt_1", 500, 300.0)
    await webhooks.add_delivery(connection, delivery)  # again, after a crash
    assert await webhooks.find_delivery(connection, "evt_1") == replace(
        delivery, attempts=2, last_status=500, attempted_at=300.0
    )
    await webhooks.given_up(connection, "evt_1", 300.0)
    assert (await webhooks.find_delivery(connection, "evt_1")).given_up_at == 300.0
    await webhooks.attempted(connection, "evt_1", 200, 400.0, delivered=True)
    assert (await webhooks.find_delivery(connection, "evt_1")).delivered_at == 400.0
    assert await webhooks.remove(connection, "wh_1", "alpha")
    assert await webhooks.find_delivery(connection, "evt_1") is None


def test_secrets_are_in_no_representation():
    rotated = replace(FIRST, previous_secret="sealed-0")
    assert "sealed" not in repr(rotated)
