"""The record of a machine, on disk and in memory, and events for changes of the record."""

from __future__ import annotations

import logging
from typing import Any

from bough.errors import NoSpace
from bough.machines.events import Events
from bough.machines.record import MachineRecord
from bough.machines.state import State, enter_state
from bough.paths import MachinePaths

log = logging.getLogger("bough.machines")


class RecordFile:
    """The record of one machine. `record` is replaced at each change, never changed in place."""

    def __init__(self, record: MachineRecord, paths: MachinePaths, events: Events) -> None:
        self.record = record
        self._paths = paths
        self._events = events

    def change(self, *, event: bool = True, state: State | None = None, **fields: Any) -> None:
        """Change the record on disk, then in memory, so no event comes too early.

        Args:
            event: emit an event if a state is given.

        Raises NoSpace, OSError: nothing is changed.
        """
        changed = self._changed(state, fields)
        changed.write(self._paths)
        self._replace(changed, tells=event and state is not None)

    def note(self, *, state: State | None = None, **fields: Any) -> bool:
        """Record what happened to QEMU, even if the disk is full. The next change writes the record, or the
        next service finds the state out again. Return whether the record was written.
        """
        changed, written = self._changed(state, fields), True
        try:
            changed.write(self._paths)
        except (NoSpace, OSError) as error:
            written = False
            log.error(
                "the record of machine %s (now %s) cannot be written: %s", changed.id, changed.state, error
            )
        self._replace(changed, tells=state is not None)
        return written

    def tell(self, kind: str, detail: str = "") -> None:
        """Emit an event about the machine; standby machines emit no events."""
        if not self.record.standby:
            self._events.emit(kind, machine=self.record.id, name=self.record.name, detail=detail)

    def _changed(self, state: State | None, fields: dict[str, Any]) -> MachineRecord:
        if state is None:
            return self.record.model_copy(update=fields)
        return enter_state(self.record, state, fields)

    def _replace(self, changed: MachineRecord, *, tells: bool) -> None:
        self.record = changed
        if tells:
            self.tell(str(changed.state), changed.failure.cause if changed.failure else "")
