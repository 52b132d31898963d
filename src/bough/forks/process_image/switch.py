"""The off switch of process images: a variable in the service's environment, or a setting of the home."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

#: "off" or "on"; it overrides the setting.
VARIABLE = "BOUGH_PROCESS_IMAGES"
#: `process_images = false` in the home's settings.toml.
SETTING = "process_images"


def why_off(settings: Path) -> str | None:
    """Return why process images are switched off; None: on.

    An invalid setting counts as off.
    """
    word = os.environ.get(VARIABLE, "").strip().lower()
    if word:
        return None if word in ("on", "1", "yes", "true") else f"{VARIABLE} is {word[:20]!r}"
    try:
        value = tomllib.loads(settings.read_text()).get(SETTING, True)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return f"{settings} cannot be read: {error}"
    return None if value is True else f"{settings} has {SETTING} = {str(value).lower()[:20]}"
