"""A report's HTML as a tree that tests can query, from the standard library's parser."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

_VOID = {"meta", "img", "br", "link", "input", "hr", "base"}


@dataclass
class Element:
    """One element; `text` is all text inside it."""

    tag: str
    attributes: dict[str, str | None]
    parent: Element | None = None
    children: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join("".join(self._texts()).split())

    def _texts(self) -> Iterator[str]:
        for child in self.children:
            if isinstance(child, str):
                yield child
            else:
                yield from child._texts()

    def all(self, tag: str | None = None, **attributes: str) -> list[Element]:
        """Descendants with this tag and these attributes (`class_` is one of its classes)."""
        wanted = attributes.pop("class_", None)
        return [
            one
            for one in self._below()
            if (tag is None or one.tag == tag)
            and (wanted is None or wanted in (one.attributes.get("class") or "").split())
            and all(one.attributes.get(name) == value for name, value in attributes.items())
        ]

    def one(self, tag: str | None = None, **attributes: str) -> Element:
        found = self.all(tag, **attributes)
        assert len(found) == 1, f"{len(found)} of {tag} {attributes}"
        return found[0]

    def _below(self) -> Iterator[Element]:
        for child in self.children:
            if isinstance(child, Element):
                yield child
                yield from child._below()


class _Builder(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("#document", {})
        self._open = self.root

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs), self._open)
        self._open.children.append(element)
        if tag not in _VOID:
            self._open = element

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open.children.append(Element(tag, dict(attrs), self._open))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.tag == tag, f"</{tag}> closes <{self._open.tag}>"
        assert self._open.parent is not None
        self._open = self._open.parent

    def handle_data(self, data: str) -> None:
        self._open.children.append(data)


def parse(page: Path) -> Element:
    """The document; raises if an end tag doesn't match the open element."""
    builder = _Builder()
    builder.feed(page.read_text(encoding="utf-8"))
    builder.close()
    assert builder._open is builder.root, f"<{builder._open.tag}> is never closed"
    return builder.root


def numbers(root: Element, card: str, table: int = 0) -> dict[str, list[str]]:
    """The numbers below a figure: first cell of each row -> the others."""
    tables = root.one("figure", id=card).one("details").all("table")
    rows = [
        [cell.text for cell in row.all() if cell.tag in ("th", "td")]
        for row in tables[table].one("tbody").all("tr")
    ]
    return {label: cells for label, *cells in rows}


def stage_rows(root: Element) -> dict[str, list[int]]:
    """The funnel: stage -> inputs, kept, rejected, failed, skipped, pending."""
    found = {}
    for body in root.one("section", id="funnel").all("table", class_="funnel")[0].all("tbody"):
        row = body.all("tr")[0]
        name = row.one("th").text.split()[0]
        found[name] = [int(cell.text.replace(",", "")) for cell in row.all("td")]
    return found
