"""Untrusted text made fit to look at: what cannot be seen is shown as a sign."""

from __future__ import annotations

import re
import unicodedata

NULL_PICTURE = 0x2400  # Unicode's pictures of the control characters begin here
DIRECTION_MARKS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def visible(text: str, *, most: int = 1500) -> str:
    r"""Returns text with signs for control and direction characters, cut after ``most`` characters.

    >>> visible("a\x00b\tc"), visible("x\u202ey"), visible("long", most=2)
    ('a␀b\tc', 'x⟨202E⟩y', 'lo … (2 more characters)')
    """
    cut = text[:most]
    shown = "".join(_sign(character) for character in cut)
    rest = len(text) - len(cut)
    return f"{shown} … ({rest:,} more characters)" if rest else shown


def log_text(text: str) -> str:
    r"""Returns a log or traceback without the terminal's colour codes.

    >>> log_text("\x1b[31mred\x1b[0m")
    'red'
    """
    return visible(TERMINAL_CODES.sub("", text).replace("\r", "\n"), most=20_000)


def _sign(character: str) -> str:
    if character in "\n\t":
        return character
    category = unicodedata.category(character)
    if category == "Cc":
        return chr(NULL_PICTURE + ord(character)) if ord(character) < 0x20 else f"⟨{ord(character):02X}⟩"
    # Lone surrogates cannot be written as UTF-8; direction marks would reorder the page around them.
    if category == "Cs" or character in DIRECTION_MARKS:
        return f"⟨{ord(character):04X}⟩"
    return character
