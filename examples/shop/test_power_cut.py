"""The first database server loses its power while orders arrive: no acknowledged order is lost."""

from bough.client import Machine, Project

POST = "curl -sf -m 10 -X POST http://localhost/orders/{}"
PROMOTE = """
su postgres -c "psql -c 'ALTER SYSTEM RESET synchronous_standby_names'" || true
pg_ctlcluster 15 main promote
su postgres -c "psql -c 'ALTER SYSTEM RESET synchronous_standby_names' -c 'SELECT pg_reload_conf()'"
"""


def order(web: Machine, first: int, count: int) -> list[str]:
    """Send orders, one after the other. Return the keys of acknowledged orders."""
    keys = [f"order-{number:04d}" for number in range(first, first + count)]
    return [key for key in keys if web.shell(POST.format(key)).ok]


def orders(web: Machine) -> list[str]:
    return web.succeed("curl -sf -m 10 http://localhost/orders/").split()


def test_no_acknowledged_order_is_lost(bough_project: Project) -> None:
    db, replica, web = (bough_project[role] for role in ("db", "replica", "web"))
    with db.power_arm():
        acknowledged = order(web, 0, 20)
        writer = web.spawn("sh", "-c", "for n in $(seq 100 999); do " + POST.format("late-$n") + "; done")
        db.power_cut(lose_unsynced=True)
        writer.kill()
    assert len(acknowledged) == 20
    replica.succeed(PROMOTE)
    web.wait_until_succeeds(POST.format("first-after-the-cut"))
    found = orders(web)
    assert not set(acknowledged) - set(found)
    assert "first-after-the-cut" in found


def test_the_replica_loses_its_power(bough_project: Project) -> None:
    """Orders wait for the replica. They are acknowledged when the replica is back."""
    replica, web = bough_project["replica"], bough_project["web"]
    replica.crash()
    assert order(web, 0, 1) == [], "an order was acknowledged although only one server has it"
    replica.start()
    web.wait_until_succeeds(POST.format("after-the-crash"))
    assert "after-the-crash" in orders(web)
