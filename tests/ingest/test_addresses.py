"""No disguise of a private address gets past the check."""

import asyncio
import ipaddress

import pytest

from textmill_ingest.addresses import AddressRefused, GuardedResolver, check_literal, refusal

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "192.0.2.1", "198.18.0.1", "240.0.0.1", "::1", "::", "fe80::1", "fc00::1", "ff02::1",
        "::ffff:127.0.0.1", "::ffff:a9fe:a9fe", "64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1", "2002:a9fe:a9fe::",
        "2002:7f00:1::1", "2001:db8::1", "::127.0.0.1", "2001:0:7f00:1::1", "2600::5efe:a9fe:a9fe", "fe80::1%1",
    ],
)  # fmt: skip
def test_private_addresses_are_refused(address):
    assert refusal(ipaddress.ip_address(address), ()) is not None


def test_teredo_hides_its_client_inverted():
    client = int(ipaddress.IPv4Address("192.168.0.1")) ^ 0xFFFFFFFF
    address = ipaddress.IPv6Address((0x20010000 << 96) | (int(ipaddress.IPv4Address("8.8.8.8")) << 64) | client)
    assert "192.168.0.1" in str(refusal(address, ()))


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public_addresses_are_not(address):
    assert refusal(ipaddress.ip_address(address), ()) is None


def test_an_allowed_network_is_open_in_every_form_and_no_other():
    for address in ("127.0.0.1", "::ffff:127.0.0.1"):
        assert refusal(ipaddress.ip_address(address), LOOPBACK) is None
    assert refusal(ipaddress.ip_address("10.0.0.1"), LOOPBACK) is not None


@pytest.mark.parametrize("host", ["localhost", "127.1", "2130706433", "0x7f000001"])
def test_names_and_odd_spellings_are_resolved_and_refused(host):
    with pytest.raises(AddressRefused, match=r"127\.0\.0\.1|::1"):
        asyncio.run(GuardedResolver(()).resolve(host, 80))


def test_an_allowed_name_gives_the_address_to_dial():
    found = asyncio.run(GuardedResolver((*LOOPBACK, ipaddress.ip_network("::1/128"))).resolve("localhost", 80))
    assert {entry["hostname"] for entry in found} == {"localhost"}
    assert all(ipaddress.ip_address(entry["host"]).is_loopback for entry in found)


def test_literals_are_checked_too():
    with pytest.raises(AddressRefused):
        check_literal("[::ffff:10.0.0.1]", ())
    check_literal("example.com", ())
