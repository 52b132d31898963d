"""Names of machines: reserved while a machine is created, generated if the user gives none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bough.errors import NameTaken
from bough.hypervisor.inventory import Inventory
from bough.machines.machine import Machine
from bough.spec import check_name
from bough.spec.container_name import short_name

_STEM_LENGTH = 40


class Names:
    """Reserves names.

    Args:
        give_way: discards a standby machine whose name a user asks for.
    """

    def __init__(self, inventory: Inventory, give_way: Callable[[Machine], None]) -> None:
        self._inventory = inventory
        self._give_way = give_way
        self._reserved: set[str] = set()

    @contextmanager
    def reserve(self, name: str) -> Iterator[str]:
        """Reserve `name` until the block ends.

        Raises:
            InvalidInput: the name is not valid.
            NameTaken: a machine has the name, or the name is reserved.
        """
        check_name(name)
        for machine in self._inventory.present():
            if machine.name == name and machine.record.standby:
                self._give_way(machine)
        if name in self._reserved or any(m.name == name for m in self._inventory.present()):
            raise NameTaken(
                f"a machine named '{name}' exists already",
                hint=f"choose another name, or delete it: bough delete {name}",
                name=name,
            )
        self._reserved.add(name)
        try:
            yield name
        finally:
            self._reserved.discard(name)

    def check_free(self, name: str) -> None:
        """Raise the errors of `reserve`, before work of minutes."""
        with self.reserve(name):
            pass

    def free_name(self, image: str) -> str:
        """Return an unused name, made from the name of an image or a machine."""
        plain = "".join(c if c.isalnum() else "-" for c in short_name(image).lower())
        stem = plain[:_STEM_LENGTH].strip("-") or "machine"
        taken = self._reserved | {machine.name for machine in self._inventory}
        number = 1
        while f"{stem}-{number}" in taken:
            number += 1
        return f"{stem}-{number}"
