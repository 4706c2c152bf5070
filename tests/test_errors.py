"""What an error says can be shown anywhere."""

from __future__ import annotations

import pytest

from zoo.errors import DataError, first_line, printable
from zoo.task import Finding


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain Größe 中", "plain Größe 中"),
        ("two\nlines", "two\nlines"),
        ("a\x1b[31mb\r\t", r"a\x1b[31mb\r\t"),
        ("bad\udcffbytes", r"bad\udcffbytes"),
        ("turned\u202etxt.exe", r"turned\u202etxt.exe"),
        ("half\u2028way", r"half\u2028way"),
    ],
)
def test_what_no_terminal_shows_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert str(DataError(text)) == shown
    assert Finding("error", "broken", text).line() == f"{shown}: broken"
    shown.encode()


def test_of_a_librarys_complaint_the_first_line_is_told() -> None:
    assert first_line(ValueError("\n  what is wrong  \nand where\n")) == "what is wrong  "
    assert first_line(KeyError()) == "KeyError"
    assert first_line(OSError("x" * 400)) == "x" * 160
    assert first_line(OSError("x" * 400), 300) == "x" * 300
