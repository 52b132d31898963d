"""Operation await_boot: wait for the end of the boot in a guest without systemd."""

from __future__ import annotations

import time

from bough.guest import agent_facts, agent_init

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bough.guest.agent_calls import Arguments, Tell

_LOOK_AGAIN_S = 0.3
_DEFAULT_S = 300.0
_LONGEST_S = 3600.0


def await_boot(arguments: Arguments, _tell: Tell) -> dict[str, object]:
    """Wait until the init has reached its default runlevel. {"timeout_s"} -> {"state", "boot_id"}.

    `state` is "running", "stopping", "maintenance", "unknown" (this init tells nothing), or "starting" after
    `timeout_s`.
    """
    asked = arguments.get("timeout_s")
    timeout_s = min(float(asked), _LONGEST_S) if isinstance(asked, (int, float)) else _DEFAULT_S
    end = time.monotonic() + timeout_s
    last = ""
    while True:
        state = agent_init.find_state()
        # Twice the same: between two steps of the boot an init looks as if it had ended.
        if state != agent_init.STARTING and state == last:
            break
        if time.monotonic() > end:
            break
        last = state
        time.sleep(_LOOK_AGAIN_S)
    return {"state": state, "boot_id": agent_facts.read_boot_id()}
