"""Requests about directories of the service's host in a machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from bough.contract.request import Request, Route

if TYPE_CHECKING:
    from bough.contract.answers import Mount


class ListMounts(Request):
    """List the shared directories of a machine, with their states."""

    route = Route("GET", "/machines/{reference}/mounts")
    answer: ClassVar[list[Mount]]
    reference: str


class AddMount(Request):
    """Share a directory: at once if the machine runs, and at each later start.

    The body is a mount as in a spec: source, target, writable, owner, cache.
    """

    route = Route("POST", "/machines/{reference}/mounts", body="mount")
    answer: ClassVar[list[Mount]]
    reference: str
    mount: dict[str, Any]


class RetryMounts(Request):
    """Try the failed mounts again."""

    route = Route("POST", "/machines/{reference}/mounts/again")
    answer: ClassVar[list[Mount]]
    reference: str


class RemoveMount(Request):
    """Stop sharing the directory at `target`; with `force`, even if a process in the guest uses it."""

    route = Route("DELETE", "/machines/{reference}/mounts")
    reference: str
    target: str
    force: bool = False
