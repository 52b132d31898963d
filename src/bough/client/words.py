"""Words of a command in JSON. JSON cannot hold bytes that are not UTF-8."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def render_request(request: dict[str, Any]) -> str:
    """Return the first message of an exec. Words may have bytes that are not UTF-8, as os.fsdecode gives
    them.

    Raises:
        InvalidInput: a variable's name has such bytes.
    """
    import json

    return json.dumps(encode_words(request), ensure_ascii=False)


def encode_words(request: dict[str, Any]) -> dict[str, Any]:
    """Encode words as render_request does, without the JSON."""
    coded = dict(request)
    coded["argv"] = [_encode(word) for word in request["argv"]]
    if request.get("env"):
        coded["env"] = {_check_name(name): _encode(value) for name, value in request["env"].items()}
    for key in ("cwd", "user"):
        if isinstance(request.get(key), str):
            coded[key] = _encode(request[key])
    return coded


def _encode(word: str) -> str | dict[str, str]:
    try:
        word.encode()
    except UnicodeEncodeError:
        import base64
        import os

        return {"base64": base64.b64encode(os.fsencode(word)).decode()}
    return word


def _check_name(name: str) -> str:
    from bough.errors import InvalidInput

    try:
        name.encode()
    except UnicodeEncodeError:
        raise InvalidInput("the name of an environment variable must be UTF-8", hint="rename it") from None
    return name
