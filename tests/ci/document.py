"""docs/ci.md, as the tests read it: what it shows is run, and what it says is held against ww."""

import re
from typing import NamedTuple

from tests.conftest import REPO

CI = (REPO / "docs" / "ci.md").read_text()


class Block(NamedTuple):
    """What stands between two fences.

    Attributes:
        language: The word after the first fence, or the empty string.
        text: The lines between them.
    """

    language: str
    text: str


def blocks(text: str) -> list[Block]:
    """The fenced parts of a text in Markdown."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(*parts) for parts in found]


def rows(text: str, columns: int) -> list[list[str]]:
    """The lines of all tables with so many columns, without those of their heads."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line] for line in lines]
    heads = [at - 1 for at, line in enumerate(cells) if set("".join(line)) == {"-"}]
    return [
        line
        for at, line in enumerate(cells)
        if len(line) == columns and at not in heads and at - 1 not in heads
    ]


def section(title: str) -> str:
    """What stands below a heading of the second level."""
    return CI.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]
