"""Keeps the crawler out of private networks: every address is checked just before it is dialled.

A check before the fetch would lose to redirects and to names that resolve differently the second time. So the check
sits in the resolver: a name is resolved once, and only checked addresses are handed to the connector. Knows nothing
of HTTP.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Iterator, Sequence

from aiohttp.abc import AbstractResolver, ResolveResult

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_NAT64 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))
_IPV4_COMPATIBLE = ipaddress.IPv6Network("::/96")
_ISATAP = (0x00005EFE, 0x02005EFE)
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")


class AddressRefused(Exception):
    """The address is none that a crawl may reach."""


def refusal(address: Address, allowed: Sequence[Network]) -> str | None:
    """Why this address may not be dialled, None if it may. ``allowed`` opens networks that are closed otherwise."""
    if any(address in network for network in allowed):
        return None
    inner = list(_embedded(address))
    for ipv4 in inner:
        if not any(ipv4 in network for network in allowed) and not _is_public(ipv4):
            return f"{address} holds {ipv4}, which is not a public address"
    # A translator's own prefix is no public address, but leads to the one it holds.
    if inner and isinstance(address, ipaddress.IPv6Address) and address not in _GLOBAL_UNICAST:
        return None
    return None if _is_public(address) else f"{address} is not a public address"


def _is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and address not in _GLOBAL_UNICAST:
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def _embedded(address: Address) -> Iterator[ipaddress.IPv4Address]:
    """IPv4 addresses that packets to this IPv6 address may end up at."""
    if isinstance(address, ipaddress.IPv4Address):
        return
    low = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address.ipv4_mapped is not None:
        yield address.ipv4_mapped
    elif any(address in network for network in _NAT64) or address in _IPV4_COMPATIBLE:
        yield low
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
    if int(address) >> 32 & 0xFFFFFFFF in _ISATAP:
        yield low


def check_literal(host: str, allowed: Sequence[Network]) -> None:
    """For hosts that are addresses already, which no resolver sees.

    Raises:
        AddressRefused
    """
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return
    reason = refusal(address, allowed)
    if reason is not None:
        raise AddressRefused(reason)


class GuardedResolver(AbstractResolver):
    """The system's resolver, less the addresses that may not be dialled."""

    def __init__(self, allowed: Sequence[Network]) -> None:
        self._allowed = allowed

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        results: list[ResolveResult] = []
        refused: list[str] = []
        for of_family, _, proto, _, where in found:
            reason = refusal(ipaddress.ip_address(where[0]), self._allowed)
            if reason is None:
                results.append(_result(host, str(where[0]), port, of_family, proto))
            else:
                refused.append(reason)
        if not results:
            raise AddressRefused(f"{host}: {'; '.join(sorted(set(refused)))}")
        return results

    async def close(self) -> None:
        pass


def _result(host: str, address: str, port: int, family: int, proto: int) -> ResolveResult:
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    return ResolveResult(hostname=host, host=address, port=port, family=family, proto=proto, flags=flags)
