"""A cluster of three etcd nodes: partitions, a new leader, wrong clocks."""

import json

from bough.client import Machine, Project

NODES = ("node-1", "node-2", "node-3")


def leader_of(node: Machine) -> str | None:
    """Return the name of the leader, as the node knows it."""
    done = node.shell("etcdctl endpoint status -w json && etcdctl member list -w json")
    if not done.ok:
        return None
    status, members = (json.loads(line) for line in done.stdout.splitlines())
    names = {member["ID"]: member["name"] for member in members["members"]}
    return names.get(status[0]["Status"]["leader"])


def wait_for_other_leader(node: Machine, former: str) -> str:
    node.wait_until_succeeds("etcdctl put probe probe")  # only a cluster with a leader accepts
    leader = leader_of(node)
    assert leader not in (None, former)
    return str(leader)


def test_the_majority_goes_on(bough_project: Project) -> None:
    leader = leader_of(bough_project["node-1"])
    assert leader in NODES
    others = [bough_project[role] for role in NODES if role != leader]
    others[0].succeed("etcdctl put key before")
    with bough_project.network("peers").isolate(leader):
        wait_for_other_leader(others[0], leader)
        others[1].succeed("etcdctl put key after")
        # A linearizable read needs the majority: the former leader must not answer with old data.
        assert "before" not in bough_project[leader].fail("etcdctl --command-timeout 3s get key")
    bough_project[leader].wait_until_succeeds("etcdctl get key | grep after")


def test_the_leader_loses_its_power(bough_project: Project) -> None:
    leader = leader_of(bough_project["node-1"])
    assert leader in NODES
    bough_project[leader].succeed("etcdctl put key acknowledged")
    bough_project[leader].crash()
    other = next(bough_project[role] for role in NODES if role != leader)
    wait_for_other_leader(other, leader)
    assert "acknowledged" in other.succeed("etcdctl get key")


def test_a_clock_jumps(bough_project: Project) -> None:
    """Each read returns the last write, although two clocks are wrong."""
    nodes = [bough_project[role] for role in NODES]
    with nodes[0].clock_fault(jump=3600), nodes[1].clock_fault(jump=-3600):
        for number in range(6):
            nodes[number % 3].wait_until_succeeds(f"etcdctl put count {number}")
            for node in nodes:
                assert node.succeed("etcdctl get --print-value-only count").strip() == str(number)
