"""The elements of a page as a browser's parser sees them."""

from __future__ import annotations

from html.parser import HTMLParser


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))


def elements_of(page: str) -> list[tuple[str, dict[str, str | None]]]:
    """Every element's name and attributes, in order."""
    parser = _Elements()
    parser.feed(page)
    return parser.found
