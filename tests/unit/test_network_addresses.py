"""Addresses of networks and machines."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Address

import pytest

from bough.errors import Conflict, InvalidInput
from bough.networks.addresses import check_ipv4, choose_ipv4, choose_mac, choose_network, ipv6_of
from bough.spec.subnet import parse_subnet


def test_addresses_derive_from_names_alone() -> None:
    one = choose_network("shop", "back", [])
    assert one == choose_network("shop", "back", [])
    assert one != choose_network("shop", "front", [])
    assert one != choose_network("bank", "back", [])
    assert one != choose_network(None, "back", [])
    assert one.subnet.prefixlen == 24
    assert one.prefix6.is_private
    assert one.prefix6.prefixlen == 64
    assert one.switch_ipv4 in one.subnet
    assert one.switch_ipv6 in one.prefix6


def test_subnets_of_one_home_never_overlap() -> None:
    subnets: list[IPv4Network] = []
    for number in range(500):
        subnets.append(choose_network(None, f"n{number}", subnets).subnet)
    assert len(set(subnets)) == 500
    again = choose_network(None, "n0", subnets)
    assert again.subnet not in subnets


def test_a_users_subnet_is_checked() -> None:
    assert choose_network(None, "a", [], subnet=parse_subnet("10.1.0.0/16")).subnet.num_addresses == 65536
    with pytest.raises(Conflict, match="another network"):
        choose_network(None, "a", [IPv4Network("10.1.2.0/24")], subnet=parse_subnet("10.1.0.0/16"))
    with pytest.raises(Conflict, match="uplink"):
        choose_network(None, "a", [], subnet=parse_subnet("10.0.0.0/16"))
    for text in ("10.1.0.0/31", "8.8.8.0/24", "127.0.0.0/24", "169.254.0.0/24"):
        with pytest.raises(InvalidInput):
            choose_network(None, "a", [], subnet=parse_subnet(text))
    for text in ("10.1.0.1/24", "back", "fd00::/64"):
        with pytest.raises(InvalidInput, match="is not a subnet"):
            parse_subnet(text)


def test_machines_have_different_addresses() -> None:
    subnet = IPv4Network("10.1.0.0/24")
    taken = []
    for number in range(253):
        taken.append(choose_ipv4(subnet, f"m{number}", taken))
    assert len(set(taken)) == 253
    assert not {subnet[0], subnet[1], subnet[-1]} & set(taken)
    with pytest.raises(Conflict, match="full: it has room for 253"):
        choose_ipv4(subnet, "one-more", taken)
    assert choose_ipv4(IPv4Network("10.1.0.0/30"), "m", []) == IPv4Network("10.1.0.0/30")[2]


def test_mac_addresses() -> None:
    one = choose_mac("shop", "back", "db", ())
    assert one == choose_mac("shop", "back", "db", ())
    assert one.startswith("52:54:")
    assert len({choose_mac("shop", "back", f"m{number}", ()) for number in range(1000)}) == 1000
    assert choose_mac("shop", "back", "db", {one}) != one


def test_ipv6_addresses_are_those_that_guests_derive() -> None:
    network = choose_network(None, "back", [])
    address = ipv6_of(network.prefix6, "52:54:00:12:34:56")
    assert address in network.prefix6
    assert IPv6Address(int(address) & (1 << 64) - 1) == IPv6Address("::5054:ff:fe12:3456")


def test_a_wanted_address_is_free_and_of_the_subnet() -> None:
    subnet = IPv4Network("10.1.0.0/24")
    check_ipv4(subnet[5], subnet, [subnet[6]])
    with pytest.raises(Conflict, match=r"another machine of the network has the address 10\.1\.0\.5"):
        check_ipv4(subnet[5], subnet, [subnet[5]])
    for address in (subnet[0], subnet[1], subnet[-1], IPv4Network("10.2.0.0/24")[5]):
        with pytest.raises(InvalidInput) as error:
            check_ipv4(address, subnet, [])
        assert error.value.hint == "the subnet has 10.1.0.2 to 10.1.0.254 for machines"
