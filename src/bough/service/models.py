"""Pydantic models of the contract's messages: they check a client's messages, and describe the API in
OpenAPI.
"""

from __future__ import annotations

import base64
import collections.abc
import os
import types
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
    create_model,
)

from bough.contract import answers, checks
from bough.contract.checks import GuestWord, HostAddress, Length, Pattern, Range
from bough.contract.message import Answer, Message
from bough.contract.request import Request
from bough.spec.model import Address

M = TypeVar("M", bound=Message)
_models: dict[type[Message], type[BaseModel]] = {}
_types: dict[type[Message], dict[str, Any]] = {}


def fields_of(kind: type[Message]) -> dict[str, tuple[Any, Any]]:
    """Return type and default of each field, as pydantic and FastAPI take them; `...`: no default."""
    hints = _hints(kind)
    return {
        name: (_translate(hints[name]), getattr(kind, name, ...)) for name in kind.fields if name != "raw"
    }


def body_model(kind: type[Request]) -> type[BaseModel]:
    """Return the model of the body: every field outside of the path. An unknown field is refused."""
    in_path = kind.route.in_path
    own = {name: field for name, field in fields_of(kind).items() if name not in in_path}
    return _model(kind.__name__, own, "forbid", kind.__doc__)


def message_model(kind: type[Message]) -> type[BaseModel]:
    """Return the model of a message. An unknown field is refused, except in an answer."""
    if kind not in _models:
        extra = "allow" if issubclass(kind, Answer) else "forbid"
        _models[kind] = _model(kind.__name__, fields_of(kind), extra, kind.__doc__)
    return _models[kind]


def answer_type(kind: type[Request]) -> Any:
    """Return the type of the answer for OpenAPI, or None if the request has no answer type."""
    found = _hints(kind)["answer"]
    inner = get_args(found)[0] if get_origin(found) is ClassVar else found
    return None if inner is Any else _translate(inner)


def to_message(kind: type[M], model: BaseModel) -> M:
    """Return the client's message, from the checked form."""
    return kind(**{name: getattr(model, name) for name in type(model).model_fields})


def _hints(kind: type[Message]) -> dict[str, Any]:
    if kind not in _types:
        names = {**vars(answers), **vars(checks)}
        _types[kind] = get_type_hints(kind, localns=names, include_extras=True)
    return _types[kind]


def _model(name: str, fields: dict[str, tuple[Any, Any]], extra: Any, doc: str | None) -> type[BaseModel]:
    model: type[BaseModel] = create_model(name, __config__=ConfigDict(extra=extra), **fields)  # type: ignore[call-overload]
    model.__doc__ = doc
    return model


def _translate(kind: Any) -> Any:
    """Return the type with pydantic's forms of our checks, and with models instead of messages."""
    if isinstance(kind, type) and issubclass(kind, Message):
        return Annotated[message_model(kind), AfterValidator(lambda model: to_message(kind, model))]
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return Annotated[(_translate(inner[0]), *_checks(inner[1:]))]
    if origin in (Union, types.UnionType):
        return Union[tuple(_translate(part) for part in inner)]  # noqa: UP007 (made of its parts)
    if origin in (list, tuple, collections.abc.Sequence):
        return list[_translate(inner[0])]  # type: ignore[misc]
    if origin in (dict, collections.abc.Mapping):
        return dict[inner[0], _translate(inner[1])]  # type: ignore[misc,valid-type]
    return kind


def _checks(marks: tuple[Any, ...]) -> Iterator[Any]:
    for mark in marks:
        if isinstance(mark, Range):
            yield Field(ge=mark.least, gt=mark.above, le=mark.most)
        elif isinstance(mark, Length):
            yield Field(min_length=mark.least, max_length=mark.most)
        elif isinstance(mark, Pattern):
            yield Field(pattern=mark.text)
        elif isinstance(mark, HostAddress):
            yield from get_args(Address)[1:]
        elif isinstance(mark, GuestWord):
            yield from (PlainValidator(parse_word), _WORD_SCHEMA)


_WORD_SCHEMA = WithJsonSchema(
    {"anyOf": [{"type": "string"}, {"type": "object", "properties": {"base64": {"type": "string"}}}]}
)


def parse_word(value: object) -> str:
    """Return a word as Python has file names: bytes that are not UTF-8 come as {"base64": ...}.

    Raises:
        ValueError: the value is neither.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and value.keys() == {"base64"} and isinstance(value["base64"], str):
        return os.fsdecode(base64.b64decode(value["base64"], validate=True))
    raise ValueError('expected text, or {"base64": text}')
