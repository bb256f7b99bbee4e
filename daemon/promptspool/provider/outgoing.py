"""One POST to an address that is no provider's: a webhook, behind a guard.

An address can lead into a private network, and so can the name of a stranger's server. So a name is
resolved once, all its addresses have to be public, and the connection goes to one of those, with
the certificate checked against the name. No proxy is used: it would resolve the name by itself.
Redirects are not followed, and an answer has a time and a size. Raises `ConfigError` for what the
guard refuses and `Unavailable` where there is no answer; both are environment.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import anyio
import httpx

from promptspool.errors import ConfigError, Unavailable, Unsent
from promptspool.provider.http import certificates
from promptspool.provider.problems import retry_after, shown, translated

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""From a host and a port to the host's addresses, the best first; raises `OSError`."""

MAX_BODY_BYTES = 4_096
"""How much of an answer is read that is no 2xx; of others nothing."""

MAX_ADDRESSES = 4
"""So many are tried, with an equal share of the time for each connection."""

_UNICAST = ipaddress.ip_network("2000::/3")
"""All that IANA gives out of IPv6; what else there is leads nowhere, or into a network."""

_NAT64 = ipaddress.ip_network("64:ff9b::/96")

# Global in the eyes of `ipaddress`, in one version of Python or another: protocol assignments (with
# Teredo in them), relays of 6to4, documentation (IANA's registries of special-purpose addresses).
_SPECIAL = tuple(
    map(
        ipaddress.ip_network,
        ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2001:db8::/32", "3fff::/20"),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What was answered."""

    status: int
    words: str
    """The beginning of the body as one line without secrets; empty for a 2xx."""
    retry_after_s: float | None


async def addresses(host: str, port: int) -> list[str]:
    """Resolve a host as the machine does."""
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)

    return list(dict.fromkeys(sockaddr[0] for *_, sockaddr in found))


async def post(  # noqa: PLR0913 - what is sent, and what it may cost
    address: str,
    *,
    body: bytes,
    headers: Mapping[str, str],
    timeout_s: float,
    allow_private: bool,
    resolve: Resolve = addresses,
) -> Reply:
    """POST *body* to an http or https *address* and return the answer, whatever its status.

    *timeout_s* is for all of it. Unless *allow_private*, the address has to be https and public.
    Raises `ConfigError` if it is not, or certificates cannot be read, and `Unavailable`, which is
    `Unsent` where no connection was made.
    """
    with translated():
        url = httpx.URL(address)

    if url.scheme != "https" and not allow_private:
        reason = (
            "http:// shows everyone on the way what is sent; write https://, or "
            "allow_private = true if the network between is yours"
        )
        raise ConfigError("", reason)

    with anyio.move_on_after(timeout_s):
        found = await _allowed(url, resolve, allow_private=allow_private)
        request = httpx.Request("POST", url, content=body, headers=headers)

        return await _answer(request, found[:MAX_ADDRESSES], timeout_s)

    raise Unavailable(f"no whole answer within {timeout_s:g} s")


def is_public(address: str) -> bool:
    """Tell whether an IP address can be reached from everywhere, and not from in here alone.

    An IPv6 address that stands for one of IPv4 (mapped, 6to4, NAT64) is as public as that one.
    """
    found = ipaddress.ip_address(address)

    if isinstance(found, ipaddress.IPv6Address):
        found = _stood_for(found)

    if isinstance(found, ipaddress.IPv6Address) and found not in _UNICAST:
        return False

    is_special = any(found in network for network in _SPECIAL)

    return found.is_global and not found.is_multicast and not is_special


def _stood_for(
    address: ipaddress.IPv6Address,
) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)

    return address.ipv4_mapped or address.sixtofour or address


async def _allowed(url: httpx.URL, resolve: Resolve, *, allow_private: bool) -> list[str]:
    host = url.raw_host.decode("ascii")

    try:
        found = await resolve(host, url.port or (443 if url.scheme == "https" else 80))
    except (OSError, UnicodeError) as error:
        words = error.strerror if isinstance(error, OSError) else None
        raise Unsent(f"{host} cannot be resolved: {words or error}") from error

    for one in found:
        if not allow_private and not is_public(one):
            reason = (
                f"{host} leads to {one}, which is no public address; write allow_private = true if "
                f"the hook is on this machine or in your own network"
            )
            raise ConfigError("", reason)

    return found


async def _answer(request: httpx.Request, found: list[str], timeout_s: float) -> Reply:
    """Send a request to the first of the addresses that takes a connection."""
    host = request.url.raw_host.decode("ascii")
    failure = Unsent(f"{host} has no address")
    limit_s = timeout_s / max(1, len(found))
    client = httpx.AsyncClient(
        timeout=httpx.Timeout(None, connect=limit_s),
        verify=await anyio.to_thread.run_sync(certificates, request.url.scheme),
        trust_env=False,
        follow_redirects=False,
        headers={
            "User-Agent": "promptspool",
            "Accept-Encoding": "identity",
            "Connection": "close",
        },
    )

    async with client:
        for one in found:
            try:
                with translated():
                    return await _exchanged(client, request, one)
            except Unsent as error:
                failure = error

    raise failure


async def _exchanged(client: httpx.AsyncClient, request: httpx.Request, address: str) -> Reply:
    pinned = client.build_request(
        request.method,
        request.url.copy_with(host=address),
        content=request.content,
        headers=request.headers,  # with the name as Host
        extensions={"sni_hostname": request.url.raw_host.decode("ascii")},
    )
    response = await client.send(pinned, stream=True)

    try:
        body = bytearray()

        if not response.is_success:
            async for chunk in response.aiter_raw():  # unpacked, it could be of any size
                body += chunk

                if len(body) >= MAX_BODY_BYTES:
                    break

        return Reply(
            status=response.status_code,
            words=shown(bytes(body[:MAX_BODY_BYTES])),
            retry_after_s=retry_after(response.headers),
        )
    finally:
        await response.aclose()
