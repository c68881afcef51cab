import asyncio
import ssl
import time
from dataclasses import replace
from ipaddress import ip_network

import httpx2
import pytest
import trustme

from kleinbild.core.errors import DestinationError, FetchError
from kleinbild.safety.fetch import Fetcher, FetchLimits, Reach, check_url, connections, resolve
from tests.unit.safety.server import answer_of, serving

pytestmark = pytest.mark.anyio

LOOPBACK = (ip_network("127.0.0.0/8"),)
LIMITS = FetchLimits(max_bytes=1_000_000, seconds=3, spool_bytes=100_000)
CANARY = b"what-the-server-said"


@pytest.fixture
def anyio_backend():
    return "asyncio"


def answering(*addresses):
    """A resolver that knows one name only, and counts."""

    async def resolver(host, port):
        resolver.asked.append(host)
        return addresses

    resolver.asked = []
    return resolver


def fetcher_to(server, **options):
    return Fetcher(Reach(LOOPBACK, frozenset({server.port})), options.pop("limits", LIMITS), **options)


async def fetched(fetcher, url):
    try:
        async with await fetcher.fetch(url) as file:
            return await file.read()
    finally:
        await fetcher.aclose()


async def refused(fetcher, url, kind=DestinationError):
    with pytest.raises(kind) as caught:
        await fetched(fetcher, url)
    assert CANARY.decode() not in f"{caught.value.message} {caught.value.hint}"
    return caught.value


async def test_a_file_is_fetched_from_a_listed_network():
    async with serving(answer_of(b"picture")) as server:
        assert await fetched(fetcher_to(server), f"http://127.0.0.1:{server.port}/a%20b?c=d") == b"picture"
    assert server.requests[0].startswith(b"GET /a%20b?c=d HTTP/1.1\r\n")
    assert b"kleinbild/" in server.requests[0]


async def test_the_connection_goes_to_the_checked_address_and_the_name_is_resolved_once():
    """Rebinding: a second look-up would give another address. There is none."""
    rebinding = iter([["127.0.0.1"], ["10.0.0.1"]])

    async def resolver(host, port):
        return next(rebinding)

    async with serving(answer_of(b"picture")) as server:
        fetcher = fetcher_to(server, resolver=resolver)
        assert await fetched(fetcher, f"http://pictures.example:{server.port}/") == b"picture"
    assert next(rebinding) == ["10.0.0.1"]
    assert f"host: pictures.example:{server.port}".encode() in server.requests[0].lower()


async def test_the_certificate_is_checked_for_the_name_in_the_url():
    authority = trustme.CA()
    served, trusted = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("pictures.example").configure_cert(served)
    authority.configure_trust(trusted)
    async with serving(answer_of(b"picture"), served) as server:
        for name in ("pictures.example", "pictures.example."):
            fetcher = fetcher_to(server, resolver=answering("127.0.0.1"), transport=connections(trusted))
            assert await fetched(fetcher, f"https://{name}:{server.port}/") == b"picture"
        fetcher = fetcher_to(server, resolver=answering("127.0.0.1"), transport=connections(trusted))
        await refused(fetcher, f"https://other.example:{server.port}/", FetchError)
    assert server.names == ["pictures.example", "pictures.example", "other.example"]


async def test_the_next_address_is_tried_when_one_does_not_answer():
    async with serving(answer_of(b"picture")) as server:
        fetcher = fetcher_to(server, resolver=answering("127.7.7.7", "127.0.0.1"))
        assert await fetched(fetcher, f"http://pictures.example:{server.port}/") == b"picture"


HOSTILE_URLS = """
    http://127.0.0.1/ http://127.1/ http://127.0.1/ http://2130706433/ http://017700000001/ http://0x7f000001/ http://0x7f.1/
    http://0177.0.0.1/ http://0x7f.0x0.0x0.0x1/ http://127.0.0.1./ http://0/ http://0.0.0.0/ http://0x/ http://1.2.3.4.5/
    http://[::1]/ http://[::]/ http://[::ffff:127.0.0.1]/ http://[::ffff:7f00:1]/ http://[::127.0.0.1]/
    http://[64:ff9b::7f00:1]/ http://[2002:7f00:1::]/ http://[fe80::1%25eth0]/ http://[fe80::1%eth0]/ http://[fec0::1]/
    http://[fd00:ec2::254]/ http://169.254.169.254/latest/meta-data/ http://metadata.google.internal/ http://metadata/
    http://METADATA.google.internal./ http://10.0.0.1/ http://192.168.0.1/ http://100.64.0.1/
    http://good.example@127.0.0.1/ http://127.0.0.1@good.example/ http://good.example:80@127.0.0.1/ http://@good.example/
    http://good.example%40127.0.0.1/ http://127.0.0.1%00.good.example/ http://127.0.0.1%2f.good.example/
    http://127.0.0.1\\@good.example/ http://good.example\\@127.0.0.1/ http:\\\\127.0.0.1\\ http://good.example:22/
    http://good.example:8080/ http://good.example:99999/ http://good.example:-1/ http://good.example:x/
    http:// http:/// http:good.example http:/good.example //good.example/ /etc/passwd good.example "" .
    http://./ http://../ http://a..b/ http://-a.example/ http://127.0.0.1#@good.example/ http://127.0.0.1?@good.example/
    ftp://good.example/ file:///etc/passwd gopher://good.example/ data:image/png;base64,AAAA javascript:alert(1) unix:///x
    http+unix://%2Ftmp%2Fsock/ http://① http://①②⑦.⓪.⓪.①/ http://１２７.０.０.１/ http://127。0。0。1/ http://[::1 http://::1/
    http://[127.0.0.1]/ http://[good.example]/ http://xn--/
""".split()  # fmt: skip
HOSTILE_URLS += [
    "",
    " http://good.example/",
    "http://good.example/\n",
    "http://good.example\t@127.0.0.1/",
    "http://good.example\r\nHost: x/",
    "http://good example/",
    "http://" + "a" * 64 + ".example/",
    "http://" + "a." * 200 + "example/",
    "http://good.example/" + "a" * 10_000,
]


def never(_request):
    pytest.fail("a request was sent")


@pytest.mark.parametrize("url", HOSTILE_URLS)
async def test_hostile_urls_are_refused_before_anything_is_sent(url):
    """The resolver answers every name with a public address: what is refused here is refused for the URL alone."""
    error = await refused(Fetcher(resolver=answering("93.184.216.34"), transport=httpx2.MockTransport(never)), url)
    assert error.hint


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["93.184.216.34", "127.0.0.1"],
        ["127.0.0.1", "93.184.216.34"],
        ["93.184.216.34", "::ffff:10.0.0.1"],
        ["2606:4700::1111", "64:ff9b::a00:1"],
        ["169.254.169.254"],
        ["fe80::1%eth0"],
        ["93.184.216.34", "nonsense"],
        [],
    ],
    ids=" ".join,
)
async def test_every_address_of_a_name_must_be_public(addresses):
    """Such as 127.0.0.1.nip.io, and names with one good address and one bad."""
    fetcher = Fetcher(resolver=answering(*addresses), transport=httpx2.MockTransport(never))
    error = await refused(fetcher, "http://127.0.0.1.nip.example/")
    assert "127.0.0.1.nip.example does not lead to the public internet" in error.message


async def test_an_internal_name_and_a_missing_one_are_refused_in_the_same_words():
    async def missing(host, port):
        raise OSError("no such host")

    internal = Fetcher(resolver=answering("10.0.0.1"), transport=httpx2.MockTransport(never))
    absent = Fetcher(resolver=missing, transport=httpx2.MockTransport(never))
    url = "http://vault.corp.example/"
    assert (await refused(internal, url)).message == (await refused(absent, url)).message


async def test_a_public_name_is_connected_to_by_address_with_its_own_host():
    def seen(request):
        assert request.url.host == "93.184.216.34"
        assert request.headers["host"] == "pictures.example"
        assert request.extensions["sni_hostname"] == "pictures.example"
        return httpx2.Response(200, stream=httpx2.ByteStream(b"picture"))

    resolver = answering("93.184.216.34")
    fetcher = Fetcher(resolver=resolver, transport=httpx2.MockTransport(seen))
    assert await fetched(fetcher, "https://pictures.example/a") == b"picture"
    assert resolver.asked == ["pictures.example"]


async def test_international_names_are_resolved_in_their_ascii_form():
    resolver = answering("127.0.0.1")
    await refused(Fetcher(resolver=resolver), "http://bücher.example/")
    assert resolver.asked == ["xn--bcher-kva.example"]


async def test_the_real_resolver_is_asked_and_its_answer_checked():
    assert "127.0.0.1" in await resolve("localhost", 80)
    await refused(Fetcher(), "http://localhost/")


async def test_ports_beside_the_webs_are_refused_unless_listed():
    assert "allowed: 80, 443" in (await refused(Fetcher(), "http://pictures.example:8080/")).hint
    assert check_url("http://pictures.example:8080/", frozenset({8080})).port == 8080


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See", "307 Temporary", "308 Permanent", "304 Same"])
async def test_redirects_are_not_followed(status):
    async with serving(b"secret") as inner:
        location = f"location: http://127.0.0.1:{inner.port}/{CANARY.decode()}"
        async with serving(answer_of(b"", status, location)) as server:
            error = await refused(fetcher_to(server), f"http://127.0.0.1:{server.port}/", FetchError)
    assert "redirects" in error.message
    assert inner.requests == []


@pytest.mark.parametrize("status", ["201 Created", "206 Partial", "403 Forbidden", "404 Missing", "500 Broken"])
async def test_what_a_server_says_is_not_told(status):
    async with serving(answer_of(CANARY, f"{status} {CANARY.decode()}")) as server:
        error = await refused(fetcher_to(server), f"http://127.0.0.1:{server.port}/", FetchError)
    assert status[:3] not in error.message


async def drip(writer):
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.05)


async def drip_headers(writer):
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"x: y\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)


async def silence(writer):
    await asyncio.sleep(60)


@pytest.mark.alone
@pytest.mark.parametrize("answer", [drip, drip_headers, silence])
async def test_a_slow_server_has_the_whole_time_and_no_more(answer):
    started = time.monotonic()
    async with serving(answer) as server:
        fetcher = fetcher_to(server, limits=replace(LIMITS, seconds=0.5))
        error = await refused(fetcher, f"http://127.0.0.1:{server.port}/", FetchError)
    assert "0.5 s" in error.message
    assert time.monotonic() - started < 2


async def test_a_slow_resolver_has_the_whole_time_and_no_more():
    async def slow(host, port):
        await asyncio.sleep(60)

    fetcher = Fetcher(limits=replace(LIMITS, seconds=0.2), resolver=slow)
    await refused(fetcher, "http://pictures.example/", FetchError)


async def endless(writer):
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b"x" * 65536)
        await writer.drain()


async def endless_chunks(writer):
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        await writer.drain()


async def endless_headers(writer):
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"x: " + b"y" * 1000 + b"\r\n")
        await writer.drain()


@pytest.mark.parametrize("answer", [endless, endless_chunks, endless_headers])
async def test_an_endless_answer_is_cut_off(answer):
    async with serving(answer) as server:
        await refused(fetcher_to(server), f"http://127.0.0.1:{server.port}/", FetchError)


async def test_a_declared_length_beyond_the_limit_is_refused_at_once():
    async def declared(writer):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000001\r\n\r\n")
        await asyncio.sleep(60)

    async with serving(declared) as server:
        error = await refused(fetcher_to(server), f"http://127.0.0.1:{server.port}/", FetchError)
    assert "larger than 1 MB" in error.message


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n" + CANARY,
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n" + CANARY,
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n" + CANARY,
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n" + CANARY,
        b"SSH-2.0-" + CANARY,
        b"",
    ],
)
async def test_answers_that_lie_are_refused(answer):
    async with serving(answer) as server:
        await refused(fetcher_to(server), f"http://127.0.0.1:{server.port}/", FetchError)


async def test_what_comes_after_the_declared_length_is_not_taken():
    async with serving(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\npicture" + CANARY) as server:
        assert await fetched(fetcher_to(server), f"http://127.0.0.1:{server.port}/") == b"picture"


async def test_a_larger_file_goes_to_disk():
    async with serving(answer_of(b"x" * 500_000)) as server:
        fetcher = fetcher_to(server)
        async with await fetcher.fetch(f"http://127.0.0.1:{server.port}/") as file:
            assert file._rolled
            assert len(await file.read()) == 500_000
        await fetcher.aclose()


async def test_proxies_and_credentials_of_the_environment_are_not_used(monkeypatch, tmp_path):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/")
    async with serving(answer_of(b"picture")) as server:
        assert await fetched(fetcher_to(server), f"http://127.0.0.1:{server.port}/") == b"picture"
    assert b"authorization" not in server.requests[0].lower()


async def test_cookies_are_not_kept():
    async with serving(answer_of(b"picture", "200 OK", "set-cookie: a=b")) as server:
        fetcher = fetcher_to(server)
        for _ in range(2):
            async with await fetcher.fetch(f"http://127.0.0.1:{server.port}/"):
                pass
        await fetcher.aclose()
    assert b"cookie" not in server.requests[1].lower()


async def test_a_post_gives_the_status_and_leaves_the_answer_unread():
    async with serving(endless) as server:
        fetcher = fetcher_to(server)
        assert await fetcher.post(f"http://127.0.0.1:{server.port}/hook", b"{}", {"webhook-id": "1"}) == 200
        await fetcher.aclose()
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /hook HTTP/1.1\r\n")
    assert b"webhook-id: 1" in head.lower()
    assert body == b"{}"


async def test_a_post_is_guarded_and_follows_nothing():
    fetcher = Fetcher(resolver=answering("10.0.0.1"), transport=httpx2.MockTransport(never))
    with pytest.raises(DestinationError):
        await fetcher.post("https://hooks.example/", b"{}", {})
    async with (
        serving(b"") as inner,
        serving(answer_of(b"", "307 T", f"location: http://127.0.0.1:{inner.port}/")) as server,
    ):
        fetcher = fetcher_to(server)
        assert await fetcher.post(f"http://127.0.0.1:{server.port}/", b"{}", {}) == 307
        await fetcher.aclose()
    assert inner.requests == []


async def test_a_silent_receiver_has_its_seconds():
    async with serving(silence) as server:
        fetcher = fetcher_to(server)
        with pytest.raises(FetchError, match=r"within 0.2 s"):
            await fetcher.post(f"http://127.0.0.1:{server.port}/", b"{}", {}, seconds=0.2)
        await fetcher.aclose()
