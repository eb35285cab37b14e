"""Merges several rows into one source: their spans, the captions of each, and other values."""

from __future__ import annotations

from typing import Any

from clipmill.pipeline.ingest.source_shards import in_order

SAID = ("spans", "caption", "captions")
_ONCE = ("title", "category", "language", "query")
Row = dict[str, Any]


def captions_of(said: Row) -> list[str]:
    """All captions of a span or of a source."""
    return list(said["captions"] or ([said["caption"]] if said["caption"] else []))


class Together:
    """A row of sources that absorbs further rows of the same source."""

    def __init__(self, row: Row) -> None:
        self._row = row
        self._extra = dict(row["extra"] or ())
        self._captions = dict.fromkeys(captions_of(row))
        self._spans: dict[tuple[float, float], tuple[dict[str, None], dict[str, str]]] = {}
        self._ids_differ = False
        for span in row["spans"] or ():
            self._take_span(span)

    def take(self, other: Row) -> bool:
        """Adds another row; False, and nothing is added, if it contains nothing new."""
        spans, captions = self.lacking(other)
        if not spans and not captions:
            return False
        self._settle_ids(other)
        for span in other["spans"] or ():
            self._take_span(span)
        if captions:
            self._captions.update(dict.fromkeys(captions))
            _add_extra(self._extra, other["extra"])
        for name in _ONCE:
            if self._row[name] is None:
                self._row[name] = other[name]
        return True

    def lacking(self, other: Row) -> tuple[list[Row], list[str]]:
        """The spans, captions of spans, and captions of the whole video that are missing here."""
        spans = []
        for span in other["spans"] or ():
            have = self._spans.get((span["start_seconds"], span["end_seconds"]))
            if have is None:
                spans.append(span)
            elif fresh := [text for text in captions_of(span) if text not in have[0]]:
                spans.append(
                    span | {"caption": fresh[0], "captions": fresh if len(fresh) > 1 else None}
                )
        return spans, [text for text in captions_of(other) if text not in self._captions]

    def row(self) -> Row:
        """The merged row."""
        captions = list(self._captions)
        spans = [
            {
                "start_seconds": start,
                "end_seconds": end,
                "caption": next(iter(said), None),
                "extra": extra or None,
                "captions": list(said) if len(said) > 1 else None,
            }
            for (start, end), (said, extra) in self._spans.items()
        ]
        return self._row | {
            "spans": in_order(spans) or None,
            "extra": self._extra or None,
            "caption": captions[0] if captions else None,
            "captions": captions if len(captions) > 1 else None,
        }

    def _take_span(self, span: Row) -> None:
        times = (span["start_seconds"], span["end_seconds"])
        said = captions_of(span)
        have = self._spans.get(times)
        if have is None:
            self._spans[times] = dict.fromkeys(said), dict(span["extra"] or ())
        elif any(text not in have[0] for text in said):
            have[0].update(dict.fromkeys(said))
            _add_extra(have[1], span["extra"])

    def _settle_ids(self, other: Row) -> None:
        """If the rows of one video have several ids, the clips are named by them: each span keeps
        its own."""
        mine, its = self._row["video_id"], other["video_id"]
        if its is not None and its != mine and other["spans"]:
            if mine is not None:
                self._row["video_id"] = None
                self._ids_differ = True
                for _, extra in self._spans.values():
                    extra.setdefault("video_id", mine)
            elif not self._ids_differ:
                self._row["video_id"] = its
                return
            for span in other["spans"]:
                span["extra"] = {**dict(span["extra"] or ()), "video_id": its}
        elif self._ids_differ and its is not None:
            _add_extra(self._extra, {"video_id": its})


def _add_extra(extra: dict[str, str], more: Any) -> None:
    """Adds values under their names; a second value of a name is called `name (2)`."""
    for name, value in dict(more or ()).items():
        number, called = 1, name
        while called in extra and extra[called] != value:
            number += 1
            called = f"{name} ({number})"
        extra[called] = value
