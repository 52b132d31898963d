"""A message of the API: typed fields with defaults, as JSON on the wire.

A dataclass would need 0.6 ms for each class at import. A message needs a hundredth of that.
"""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar, dataclass_transform

A = TypeVar("A", bound="Answer")
_NO_DEFAULT = object()


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Message:
    """Base of all messages. A subclass declares fields as annotations, with or without a default.

    Fields are given by keyword, and do not change. The service checks the values; the client does not.

    Raises (the constructor):
        TypeError: a field without a default is missing, or a field is unknown.
    """

    #: Names of the fields, those of the base class first.
    fields: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        own = (name for name, kind in cls.__annotations__.items() if not kind.startswith("ClassVar"))
        cls.fields = (*cls.fields, *own)

    def __init__(self, **given: Any) -> None:
        values = self.__dict__
        for name in self.fields:
            if name in given:
                values[name] = given.pop(name)
            elif hasattr(type(self), name):
                values[name] = getattr(type(self), name)
            else:
                raise TypeError(f"{type(self).__name__} needs {name}")
        if given:
            raise TypeError(f"{type(self).__name__} has no field {next(iter(given))}")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} does not change")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        raise TypeError(f"{type(self).__name__} may have lists in its fields")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.__dict__.items())})"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON has them. A field with its default is left out."""
        kind = type(self)
        return {
            name: to_json(value)
            for name, value in self.__dict__.items()
            if value != getattr(kind, name, _NO_DEFAULT)
        }


class Answer(Message):
    """Base of the answers. `raw` is the whole answer, with further fields of a newer service."""

    raw: dict[str, Any]

    @classmethod
    def from_dict(cls: type[A], data: dict[str, Any]) -> A:
        known = {name: value for name, value in data.items() if name in cls.fields and name != "raw"}
        return cls(raw=data, **known)


def to_json(value: Any) -> Any:
    """Return a field's value as JSON has it: messages as objects, tuples as arrays."""
    if isinstance(value, Message):
        return value.to_dict()
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return value
