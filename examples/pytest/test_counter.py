"""Each test gets its own machine with a counter at zero."""

from bough.client import Machine

READ = """python3 -c '
from urllib.request import urlopen
print(urlopen("http://localhost:8000/", timeout=20).read().decode())'
"""


def count(machine: Machine) -> int:
    return int(machine.succeed(READ))


def test_it_counts(bough_machine: Machine) -> None:
    assert [count(bough_machine) for _ in range(3)] == [1, 2, 3]


def test_it_counts_on_after_a_crash_of_the_service(bough_machine: Machine) -> None:
    assert count(bough_machine) == 1
    bough_machine.succeed("systemctl kill --signal=KILL counter")
    with bough_machine.subtest("systemd starts the service again"):
        bough_machine.wait_until_succeeds("systemctl show -p NRestarts counter | grep -v =0")
        bough_machine.wait_for_open_port(8000)
    assert count(bough_machine) == 2


def test_it_counts_on_after_the_power_failed(bough_machine: Machine) -> None:
    assert count(bough_machine) == 1
    bough_machine.crash()
    bough_machine.start()
    bough_machine.wait_for_open_port(8000)
    assert count(bough_machine) == 2


def test_no_test_sees_what_another_did(bough_machine: Machine) -> None:
    assert count(bough_machine) == 1
    bough_machine.succeed("rm -rf /var/lib/counter /srv")
