"""Clips as rows, a table, and pictures in a notebook."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from clipmill.dataset import Dataset


class Clips(Sequence[dict[str, Any]]):
    """Some clips: a sequence of rows, a table, and pictures in a notebook."""

    def __init__(self, dataset: Dataset, table: pa.Table) -> None:
        self._dataset = dataset
        self.table = table
        """The rows, with all columns of the view `clips`."""

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            places = pa.array(range(*index.indices(len(self))), pa.int64())
            return Clips(self._dataset, self.table.take(places))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.table.slice(index % len(self), 1).to_pylist()[0]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.table.to_pylist())

    def __repr__(self) -> str:
        return f"<{len(self)} clips of {self._dataset!r}>"

    def df(self) -> Any:
        """A pandas DataFrame."""
        return self.table.to_pandas()

    def _repr_html_(self) -> str:
        from clipmill.jobs.report.pictures import make_strips
        from clipmill.pipeline.catalog.kept_frames import ClipSpan

        rows = list(self)
        spans = [
            ClipSpan(row["clip_id"], row["video_id"], row["start_seconds"], row["end_seconds"])
            for row in rows
        ]
        catalog = self._dataset._catalog()
        strips = make_strips(catalog, spans)
        cells = []
        for row in rows:
            strip = strips.get(row["clip_id"])
            picture = (
                "no frames kept"
                if strip is None
                else (
                    f'<img alt="" width="{strip.width}" height="{strip.height}" '
                    f'src="data:image/jpeg;base64,{strip.data}">'
                )
            )
            scores = ", ".join(
                f"{name} {row[name]:.3g}"
                for name in ("similarity", "aesthetic", "motion")
                if isinstance(row.get(name), int | float)
            )
            text = html.escape(str(row.get("caption") or ""))
            cells.append(
                f"<tr><td>{picture}</td><td style='text-align:left'>{text}<br>"
                f"<small>{html.escape(scores)}<br><code>{html.escape(row['clip_id'])}</code>, "
                f"{row['end_seconds'] - row['start_seconds']:.3g} s</small></td></tr>"
            )
        return f"<table>{''.join(cells)}</table>"
