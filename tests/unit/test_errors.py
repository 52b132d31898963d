import pytest

from bough import errors
from bough.errors import AgentTimeout, BoughError, MachineFailed, error_from_dict


def every_class(cls: type[BoughError] = BoughError) -> list[type[BoughError]]:
    return [cls] + [found for child in cls.__subclasses__() for found in every_class(child)]


def test_codes_are_one_per_class() -> None:
    codes = [cls.code for cls in every_class()]
    assert len(codes) == len(set(codes))


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    ours = [cls for cls in every_class() if cls.__module__ == errors.__name__]
    assert all(cls.__name__ in (errors.__doc__ or "") for cls in ours)


@pytest.mark.parametrize("cls", every_class())
def test_an_error_crosses_the_api_as_the_same_class(cls: type[BoughError]) -> None:
    told = error_from_dict(cls("it broke", hint="mend it", machine="web", console=None).to_dict())
    assert type(told) is cls
    assert (told.message, told.hint, told.machine) == ("it broke", "mend it", "web")
    assert "console" not in told.details


def test_an_error_of_a_newer_version_is_still_an_error() -> None:
    told = error_from_dict({"code": "invented-later", "message": "something new"})
    assert type(told) is BoughError
    assert told.message == "something new"


def test_callers_catch_by_what_they_can_do() -> None:
    assert issubclass(AgentTimeout, errors.AgentUnavailable)
    assert not issubclass(MachineFailed, errors.Conflict)
    with pytest.raises(AttributeError):
        _ = BoughError("x").console
