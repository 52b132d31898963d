import pytest
from hypothesis import given
from hypothesis import strategies as st

from bough.units import GIB, MIB, format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512MiB", 512 * MIB),
        ("512M", 512 * MIB),
        ("1.5 GiB", 3 * GIB // 2),
        ("2g", 2 * GIB),
        ("17", 17),
        (17, 17),
        ("1KB", 1024),
    ],
)
def test_sizes_as_people_write_them(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "lots", "-1", -1, "1XB", "1e9", True, None, "1" * 40])
def test_what_is_no_size_is_told(text: object) -> None:
    with pytest.raises(ValueError, match=r"size"):
        parse_size(text)  # type: ignore[arg-type]


@given(st.integers(min_value=0, max_value=2**60))
def test_a_printed_size_is_read_back_nearly(size: int) -> None:
    assert parse_size(format_size(size)) == pytest.approx(size, rel=0.06, abs=1)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("2m", 120), ("1h30m", 5400), (0.5, 0.5), ("250ms", 0.25)]
)
def test_times(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "soon", "-3", "1y", float("nan"), float("inf"), "5 fortnights"])
def test_what_is_no_time_is_told(text: str | float) -> None:
    with pytest.raises(ValueError, match="time"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.34, "340 ms"), (7.24, "7.2 s"), (185, "3 min 5 s"), (7800, "2 h 10 min")]
)
def test_times_for_people(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
