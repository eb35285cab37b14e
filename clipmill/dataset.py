"""The public `Dataset`: queries, outcomes, subsets and exports from Python."""

from __future__ import annotations

import contextlib
import html
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from clipmill.pipeline.catalog.catalog import Catalog, open_catalog
from clipmill.pipeline.catalog.kept_frames import ClipSpan
from clipmill.pipeline.catalog.user_sql import readable_errors
from clipmill.pipeline.dataset.run_records import latest_run, require_dataset
from clipmill.pipeline.dataset.versions import code_version
from clipmill.pipeline.exports.request import (
    Documents,
    Engine,
    ExportRequest,
    Format,
    cut_options,
    interleaving_options,
    size_in_bytes,
)
from clipmill.pipeline.exports.run_export import run_export
from clipmill.pipeline.recipes.overrides import as_overrides
from clipmill.pipeline.recipes.ready_made import SUBSET_FOLDER, subset_recipe_path
from clipmill.pipeline.status import status_report
from clipmill.pipeline.subsets.data_card import data_card
from clipmill.pipeline.subsets.explain import explain_recipe
from clipmill.pipeline.subsets.freeze import (
    FrozenSubset,
    create_subset,
    load_subset,
    still_there,
    subset_names,
)
from clipmill.pipeline.subsets.subset_recipe import (
    SubsetRecipe,
    load_subset_recipe,
    predicate_recipe,
)
from clipmill.schemas.errors import ERROR_KINDS, ClipmillError, UsageError
from clipmill.schemas.extras import extras_explained
from clipmill.schemas.sql_text import literal

if TYPE_CHECKING:
    import duckdb

    from clipmill.pipeline.training import ClipDataset

_SHOWN_CLIPS = 20


def open(
    path: str | os.PathLike[str], *, memory_limit: str | None = None, allow_external: bool = False
) -> Dataset:
    """Opens a dataset; raises UsageError if there is none.

    memory_limit: what DuckDB may use before it spills to disk, e.g. `4GB`; by default half of the
    machine's memory.
    allow_external: lets queries read other files and the network.
    """
    return Dataset(path, memory_limit=memory_limit, allow_external=allow_external)


class Dataset:
    """A dataset's folder, opened for queries; a context manager.

    Each query sees what runs have added by then, including those of other processes. One catalog is
    open at a time; an earlier one lives for as long as a relation of it does.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        memory_limit: str | None = None,
        allow_external: bool = False,
    ) -> None:
        self.path = require_dataset(Path(path).expanduser()).absolute()
        self._memory_limit = memory_limit
        self._allow_external = allow_external
        self._current: Catalog | None = None
        self._watched: list[Path] = []
        self._seen: list[int | None] = []

    def __repr__(self) -> str:
        return f"clipmill.open({str(self.path)!r})"

    def __enter__(self) -> Dataset:
        return self

    def __exit__(
        self, kind: object, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Closes it; an error caused by a damaged file is raised as DamagedFile."""
        if self._current is not None:
            explained = isinstance(error, ClipmillError)
            with contextlib.closing(self):
                self._current.__exit__(kind, None if explained else error, traceback)

    def close(self) -> None:
        """Closes the catalog, and with it the relations that read from it."""
        if self._current is not None:
            self._current.close()
            self._current = None

    # What it holds

    def sql(self, query: str) -> duckdb.DuckDBPyRelation:
        """The rows of one read-only statement, lazily: `.df()`, `.arrow()`, `.pl()`, `.show()`.

        Views: `clips`, `videos`, `rejections`, `failures`, `runs`, `subsets` and more, see
        docs/reference/tables.md. Raises UsageError for SQL that is not read-only.
        """
        with self._asking() as catalog:
            return catalog.relation(query)

    def clips(
        self,
        where: str | None = None,
        *,
        limit: int | None = _SHOWN_CLIPS,
        sample_seed: int | None = None,
    ) -> Clips:
        """Clips that match an SQL condition, with pictures in a notebook.

        Ordered by video and time, or at random with `sample_seed`.
        """
        order = (
            "video_id, start_seconds, clip_id"
            if sample_seed is None
            else (f"hash(clip_id || {literal(str(sample_seed))}), clip_id")
        )
        query = (
            "SELECT * FROM clips"
            + (f" WHERE ({where}\n)" if where else "")
            + (f" ORDER BY {order}")
            + ("" if limit is None else f" LIMIT {int(limit)}")
        )
        with self._asking() as catalog:
            return Clips(self, catalog.relation(query).to_arrow_table())

    def status(self) -> dict[str, Any]:
        """Inputs, kept, rejected, failed and pending rows per stage; as `status --format json`."""
        return status_report(self.path)

    def failures(self, kind: str | None = None) -> duckdb.DuckDBPyRelation:
        """What failed and why: `stage, key, kind, message, attempts, at`."""
        if kind is not None and kind not in ERROR_KINDS:
            raise UsageError(f"kind={kind!r}: allowed: {', '.join(ERROR_KINDS)}")
        condition = "" if kind is None else f" WHERE kind = {literal(kind)}"
        return self.sql(f"SELECT * FROM failures{condition} ORDER BY stage, key")

    def report(
        self, output: str | os.PathLike[str] | None = None, *, subset: str | None = None
    ) -> Path:
        """Writes one self-contained HTML page about the dataset or a subset; gives its path."""
        from clipmill.jobs.report.page import write_report

        path = Path(output) if output is not None else Path(f"{self.path.name}-report.html")
        write_report(self.path, path, subset=subset)
        return path

    # Choosing

    @property
    def subsets(self) -> list[str]:
        """The names of the frozen subsets."""
        return subset_names(self.path)

    def subset(
        self,
        recipe: str | None = None,
        *,
        where: str | None = None,
        name: str | None = None,
        seed: int | None = None,
        **parameters: Any,
    ) -> Subset:
        """A frozen subset: an existing one, by its name alone, or else a new one.

        `recipe` is a ready-made name or a YAML file, `where` an SQL condition instead of one, and
        `parameters` are the recipe's, e.g. `clips=10_000`. The same recipe, seed and parameters
        over the same clips give the same subset.
        """
        alone = where is None and name is None and seed is None and not parameters
        if recipe is not None and alone and recipe in self.subsets:
            return Subset(self, load_subset(self.path, recipe))
        loaded = _subset_recipe(recipe, where, seed, parameters)
        with self._asking() as catalog, catalog.bounded():
            frozen, _ = create_subset(
                catalog, loaded, name=name or loaded.name, code_version=code_version()
            )
        return Subset(self, frozen)

    def explain(
        self,
        recipe: str | None = None,
        *,
        where: str | None = None,
        seed: int | None = None,
        **parameters: Any,
    ) -> dict[str, Any]:
        """What a subset recipe would keep, rule by rule; nothing is frozen."""
        loaded = _subset_recipe(recipe, where, seed, parameters)
        with self._asking() as catalog, catalog.bounded():
            return explain_recipe(catalog, loaded).plain()

    def export(
        self,
        output: str | os.PathLike[str],
        format: Format = "webdataset",
        *,
        subset: str | None = None,
        where: str | None = None,
        media: Literal["none", "copy", "exact"] = "none",
        audio: bool = True,
        caption: str = "caption",
        keep_uncaptioned: bool | None = None,
        redact: bool = False,
        shard_size: str = "1GB",
        engine: Engine | None = None,
        start: Literal["before", "nearest"] | None = None,
        encoder: str | None = None,
        crf: int | None = None,
        preset: str | None = None,
        short_side: int | None = None,
        documents: Documents | None = None,
        drop: float | None = None,
        seed: int | None = None,
    ) -> dict[str, Any]:
        """Writes clips for training, as `clipmill export` does; returns the manifest.

        Call it again after an interruption to continue.
        """
        request = ExportRequest(
            self.path,
            Path(output).expanduser().absolute(),
            format,
            subset=subset,
            where=where,
            redact=redact,
            shard_bytes=size_in_bytes(shard_size, "shard_size"),
            caption=caption,
            uncaptioned=keep_uncaptioned,
            interleaving=interleaving_options(format, documents, drop, seed),
            cut=cut_options(
                media,
                audio=audio,
                start=start,
                encoder=encoder,
                crf=crf,
                preset=preset,
                short_side=short_side,
            ),
            engine=engine,
        )
        with extras_explained():
            return run_export(request, code_version=code_version()).manifest

    def training(
        self, subset: str | None = None, where: str | None = None, **options: Any
    ) -> ClipDataset:
        """A PyTorch dataset that decodes the clips' frames; options as `clipmill.ClipDataset`."""
        with extras_explained("train"):
            from clipmill.pipeline.training import ClipDataset

        return ClipDataset(self.path, subset, where, **options)

    # The catalog

    def _catalog(self) -> Catalog:
        """The catalog as the dataset is now. The former one closes when nothing refers to it."""
        if self._current is None or _times(self._watched) != self._seen:
            record = latest_run(self.path)
            self._watched = [
                self.path / name
                for name in (
                    *("runs", "subsets", "removed", "index", "sources"),
                    *(
                        folder
                        for stage in (record["stages"] if record else ())
                        for step in stage["steps"]
                        for folder in step["tables"].values()
                    ),
                )
            ]
            self._seen = _times(self._watched)  # first: what comes meanwhile is seen next time
            self._current = open_catalog(
                self.path, memory_limit=self._memory_limit, allow_external=self._allow_external
            )
        return self._current

    @contextmanager
    def _asking(self) -> Iterator[Catalog]:
        """The catalog, for queries whose errors name the SQL or the file that caused them."""
        catalog = self._catalog()
        with catalog.damage_named(), readable_errors():
            yield catalog


@dataclass(frozen=True)
class Subset:
    """A frozen list of clips, with everything that determined the choice."""

    dataset: Dataset
    frozen: FrozenSubset

    @property
    def name(self) -> str:
        return self.frozen.name

    @property
    def hash(self) -> str:
        """SHA-256 over the ids of its clips."""
        return str(self.frozen.info["hash"])

    @property
    def info(self) -> Mapping[str, Any]:
        """Its record: recipe, seed, scorers, funnel, counts, hours."""
        return self.frozen.info

    def __len__(self) -> int:
        return int(self.frozen.info["n_clips"])

    def __repr__(self) -> str:
        return f"<subset {self.name!r}: {len(self):,} clips, {self.hash[:19]}…>"

    def card(self) -> str:
        """Its data card, as Markdown."""
        return data_card(
            self.frozen, still_there(self.dataset._catalog(), self.frozen), SUBSET_FOLDER
        )

    def _repr_markdown_(self) -> str:
        return self.card()

    def export(
        self, output: str | os.PathLike[str], format: Format = "webdataset", **options: Any
    ) -> dict[str, Any]:
        """Writes its clips for training; same options as `Dataset.export`."""
        return self.dataset.export(output, format, subset=self.name, **options)

    def training(self, **options: Any) -> ClipDataset:
        """A PyTorch dataset of its clips; same options as `clipmill.ClipDataset`."""
        return self.dataset.training(self.name, **options)


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


def _subset_recipe(
    recipe: str | None, where: str | None, seed: int | None, parameters: Mapping[str, Any]
) -> SubsetRecipe:
    if (recipe is None) == (where is None):
        raise UsageError("give a recipe's name or file, or a condition with where=; one of both")
    if where is not None:
        if parameters:
            raise UsageError(f"{next(iter(parameters))}: a condition has no parameters")
        return predicate_recipe(where, seed=seed)
    assert recipe is not None  # one of the two is given
    return load_subset_recipe(
        subset_recipe_path(recipe),
        seed=seed,
        ready_made=SUBSET_FOLDER,
        overrides=as_overrides(parameters),
    )


def _times(folders: Sequence[Path]) -> list[int | None]:
    """When each folder last changed; None for one that does not exist."""
    found: list[int | None] = []
    for folder in folders:
        try:
            found.append(folder.stat().st_mtime_ns)
        except OSError:
            found.append(None)
    return found
