"""Text that others wrote, made fit for a file, a terminal or an error."""

from __future__ import annotations


def printable(text: str) -> str:
    """The same text; a lone surrogate, which no UTF-8 text can hold, is written as its escape (`\\ud83d`)."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def one_line(error: BaseException | str, most: int = 200) -> str:
    """The message of another library's error, in one line of at most `most` characters; its type where it says
    nothing."""
    said = " ".join(printable(str(error)).split()) or type(error).__name__
    return said if len(said) <= most else said[: most - 4] + " ..."
