"""The request for the differences between two systems."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bough.contract.request import Request, Route

if TYPE_CHECKING:
    from bough.contract.answers import SystemDifferences


class CompareSystems(Request):
    """Return what differs between two systems: images, snapshots or machines, running or not.

    `before` and `after` are names or ids; "machine:NAME", "snapshot:NAME" and "image:NAME" name a kind.
    Without `before`: the snapshot that the machine was forked from, or else its image. Secrets are not in the
    answer.
    """

    route = Route("POST", "/differences", "long")
    answer: ClassVar[SystemDifferences]
    after: str
    before: str | None = None
