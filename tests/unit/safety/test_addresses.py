from ipaddress import ip_address, ip_network

import pytest

from kleinbild.safety.addresses import may_reach, unmapped

PUBLIC = """
    8.8.8.8 1.1.1.1 93.184.216.34 172.15.0.1 172.32.0.1 100.63.255.255 100.128.0.1 192.0.1.1 198.17.0.1 223.255.255.255
    2606:4700::1111 2a00:1450:4001::200e 2001:4860:4860::8888 ::ffff:8.8.8.8 64:ff9b::8.8.8.8 2002:808:808::1
""".split()

CLOSED = """
    0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 100.127.255.254 127.0.0.1 127.255.255.254 169.254.169.254 172.16.0.1 172.31.255.255
    192.0.0.1 192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1
    255.255.255.255 168.63.129.16 100.100.100.200
    :: ::1 ::127.0.0.1 ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::ffff:0:127.0.0.1
    64:ff9b::127.0.0.1 64:ff9b::169.254.169.254 64:ff9b:1::8.8.8.8 64:ff9b:1::7f00:1 100::1
    2002:7f00:1:: 2002:a00:1:: 2002:a9fe:a9fe:: 2001:0:7f00:1:: 2001:0:808:808::f7f7:f7f7 2001:db8::1 2001:10::1 3fff::1
    5f00::1 fc00::1 fd00:ec2::254 fd20:ce::254 fe80::1 fec0::1 ff02::1 4000::1
""".split()


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses_may_be_reached(text):
    assert may_reach(ip_address(text))


@pytest.mark.parametrize("text", CLOSED)
def test_all_others_may_not(text):
    assert not may_reach(ip_address(text))


@pytest.mark.parametrize("text", ["10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::10.1.2.3", "2002:a01:203::"])
def test_a_listed_network_may_be_reached_in_every_form_of_its_addresses(text):
    assert may_reach(ip_address(text), [ip_network("10.0.0.0/8")])
    assert not may_reach(ip_address(text), [ip_network("10.2.0.0/16"), ip_network("fd00::/8")])


@pytest.mark.parametrize(
    "text", ["169.254.169.254", "::ffff:169.254.169.254", "fd00:ec2::254", "100.100.100.200", "fe80::1"]
)
def test_metadata_stays_closed_whatever_is_listed(text):
    assert not may_reach(ip_address(text), [ip_network("0.0.0.0/0"), ip_network("::/0")])


def test_unmapping():
    assert unmapped(ip_address("::ffff:1.2.3.4")) == ip_address("1.2.3.4")
    assert unmapped(ip_address("64:ff9b::1.2.3.4")) == ip_address("1.2.3.4")
    assert unmapped(ip_address("2002:102:304::")) == ip_address("1.2.3.4")
    assert unmapped(ip_address("2606:4700::1111")) == ip_address("2606:4700::1111")
