"""Lines of text for pictures."""

from __future__ import annotations

import numpy as np
import pytest

from dicom_node.lettering import drawn, text_height, text_width, wrapped

WORDS = "a line of some words that is to be broken"


@pytest.mark.parametrize("width", [40, 100, 1000])
def test_lines_fit_and_lose_no_word(width: int) -> None:
    lines = wrapped(WORDS, 12, width)
    assert " ".join(lines) == WORDS
    assert all(text_width(line, 12) <= width for line in lines)
    assert (len(lines) == 1) is (width == 1000)


def test_a_word_too_long_by_itself_is_cut_where_it_still_fits() -> None:
    (line,) = wrapped("W" * 100, 12, 200)
    assert line.endswith("\u2026")
    assert text_width(line, 12) <= 200 < text_width("W" + line, 12)


def test_what_is_too_much_for_the_lines_ends_in_an_ellipsis() -> None:
    lines = wrapped(WORDS, 12, 100, 2)
    assert len(lines) == 2
    assert WORDS.startswith(" ".join(lines).removesuffix("\u2026"))
    assert lines[-1].endswith("\u2026")
    assert text_width(lines[-1], 12) <= 100
    assert wrapped("short", 12, 100, 2) == ("short",)


def test_text_is_drawn_in_its_colour_on_its_background() -> None:
    letters = drawn("Ilgj", 40, (255, 0, 10), (0, 200, 10))
    assert letters.shape == (text_height(40), text_width("Ilgj", 40), 3)
    assert letters.reshape(-1, 3).max(axis=0).tolist() == [255, 200, 10]
    red = letters[..., 0].astype(int)
    np.testing.assert_allclose(letters[..., 1], 200 - red * 200 / 255, atol=1)
    assert letters[0].tolist() == [[0, 200, 10]] * letters.shape[1], "no letter is cut off at the top"
