"""What the pictures of several tasks share."""

import io

import pytest

from zoo.drawing import blank, plain, short_name, shortened


def test_a_long_name_keeps_its_beginning_or_its_end() -> None:
    assert shortened("x" * 8, 8) == "x" * 8
    assert shortened("abcdefghij", 5) == "abcd…"
    assert shortened("abcdefghij", 5, keep_end=True) == "…ghij"


@pytest.mark.parametrize("name", ["a$b", "$x_1$", "$"])
def test_a_dollar_is_no_formula(name: str) -> None:
    """Matplotlib takes what stands between two dollars as mathematics, and fails on nonsense."""
    assert plain(name) == name.replace("$", r"\$")
    figure, axes = blank(2, 2)
    axes.set_title(plain(name + " $\\nosuch$"))
    figure.savefig(io.BytesIO(), format="png", dpi=20)


def test_a_legend_shows_names_that_begin_with_an_underscore() -> None:
    _, axes = blank(2, 2)
    for name in ("_hidden", "shown", "a_very_long_name_of_a_class"):
        axes.plot([0, 1], [0, 1], label=short_name(name))
    _, names = axes.get_legend_handles_labels()
    assert names == [" _hidden", "shown", "a_very_long_name_…"]
    assert short_name("$5") == r"\$5"
    assert short_name("x" * 40, 10, keep_end=True) == "…" + "x" * 9


def test_blank_axes_have_two_borders() -> None:
    figure, axes = blank(3, 2)
    assert figure.get_size_inches().tolist() == [3, 2]
    assert [s for s, line in axes.spines.items() if line.get_visible()] == ["left", "bottom"]
