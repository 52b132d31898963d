"""A virtual address moves to the second server when the first one cannot be reached."""

from bough.client import Machine, Project

ASK = "curl -sf -m 2 http://10.180.0.200/ | grep -x {}"


def wait_for_answer(client: Machine, server: str) -> None:
    client.wait_until_succeeds(ASK.format(server))


def test_the_address_moves_with_the_cable(bough_project: Project) -> None:
    client = bough_project["client"]
    wait_for_answer(client, "server-1")
    with bough_project["server-1"].unplug("front"):
        wait_for_answer(client, "server-2")
    wait_for_answer(client, "server-1")


def test_the_address_moves_with_lost_frames(bough_project: Project) -> None:
    client = bough_project["client"]
    with bough_project.network("front").isolate("server-1"):
        wait_for_answer(client, "server-2")
    wait_for_answer(client, "server-1")


def test_the_daemon_is_killed(bough_project: Project) -> None:
    client, server = bough_project["client"], bough_project["server-1"]
    server.succeed("systemctl stop keepalived")
    wait_for_answer(client, "server-2")
