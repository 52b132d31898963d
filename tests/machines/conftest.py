"""Every test with a real machine is checked for what it leaves behind."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> None:
    # Only where the run's BOUGH_HOME is used: a test with a home of its own looks itself.
    if "bough_home" in request.fixturenames:
        request.getfixturevalue("nothing_left")
