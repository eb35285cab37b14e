"""The public `Dataset`: queries, outcomes, subsets and exports from Python."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from clipmill.audit import Audits
from clipmill.clips import Clips
from clipmill.pipeline.catalog.catalog import Catalog, open_catalog
from clipmill.pipeline.catalog.user_sql import readable_errors
from clipmill.pipeline.catalog.views import VIEWS
from clipmill.pipeline.dataset.run_records import check_links, latest_run, require_dataset
from clipmill.schemas.errors import ERROR_KINDS, ClipmillError, UsageError
from clipmill.schemas.extras import extras_explained
from clipmill.schemas.folders import AUDITS, INDEX, REMOVED, RUNS, SOURCES, SUBSETS
from clipmill.schemas.sql_text import literal, quoted
from clipmill.searching import Searches
from clipmill.subset import Subset

# Calls import the other modules that they need: a query should not wait for exports.
if TYPE_CHECKING:
    import duckdb

    from clipmill.pipeline.catalog.index_writer import IndexReport
    from clipmill.pipeline.costs.spent import Cost
    from clipmill.pipeline.exports.request import Documents, Engine, Format
    from clipmill.pipeline.exports.run_export import Exported, ExportWatcher
    from clipmill.pipeline.recipes.overrides import Settings
    from clipmill.pipeline.removal.under_lock import Removal
    from clipmill.pipeline.status import Status
    from clipmill.pipeline.subsets.subset_recipe import SubsetRecipe
    from clipmill.pipeline.training import ClipDataset
    from clipmill.pipeline.verify.findings import Verification

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


class Dataset(Audits, Searches):
    """A dataset's folder, opened for queries; a context manager.

    Each query sees what runs have added by then, including those of other processes. One catalog
    is open at a time; an earlier one stays open while a relation still uses it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        memory_limit: str | None = None,
        allow_external: bool = False,
    ) -> None:
        self._given = require_dataset(Path(path).expanduser())
        self.path = self._given.absolute()
        self._memory_limit = memory_limit
        self._allow_external = allow_external
        self._current: Catalog | None = None
        self._embedders = {}
        self._watched: list[Path] = []
        self._seen: list[int | None] = []

    @property
    def _shown(self) -> Path:
        """The path for messages: as it was given, while it still leads here."""
        return self._given if self._given.absolute() == self.path else self.path

    def __repr__(self) -> str:
        return f"clipmill.open({str(self.path)!r})"

    def __enter__(self) -> Dataset:
        return self

    def __exit__(
        self, kind: object, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Closes the dataset; an error caused by a damaged file is raised as DamagedFile."""
        if self._current is not None:
            explained = isinstance(error, ClipmillError)
            with contextlib.closing(self):
                self._current.__exit__(kind, None if explained else error, traceback)

    def close(self) -> None:
        """Closes the catalog and the relations that read from it."""
        if self._current is not None:
            self._current.close()
            self._current = None

    # Contents

    def sql(self, query: str) -> duckdb.DuckDBPyRelation:
        """The rows of one read-only statement, lazily: `.df()`, `.arrow()`, `.pl()`, `.show()`.

        Views: `clips`, `videos`, `rejections`, `failures`, `skipped`, `runs`, `subsets`, …: see
        docs/reference/tables.md. Raises UsageError for SQL that is not read-only.
        """
        with self._asking() as catalog:
            return catalog.relation(query)

    @contextmanager
    def stream(self, query: str) -> Iterator[pa.RecordBatchReader]:
        """The rows of one read-only statement, batch by batch, for results larger than memory.

        Inside the `with` block, this process's memory is limited, since functions in SQL may take
        any amount.
        """
        with self._asking() as catalog, catalog.bounded():
            yield catalog.ask(query)

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

    def views(self) -> dict[str, list[str]]:
        """Everything that SQL may name, with its columns: views, and the tables of each step."""
        with self._asking() as catalog:
            names = [*VIEWS, *(f"steps.{table.step}" for table in catalog.layout.steps)]
            return {
                name: [
                    column
                    for column, *_ in catalog.execute(
                        f"SELECT * FROM {'.'.join(map(quoted, name.split('.', 1)))} LIMIT 0"
                    ).description
                ]
                for name in names
            }

    def cost(self, prices: Mapping[str, Any] | None = None) -> Cost:
        """What was spent per stage and per 1,000 kept clips, and what the next 1,000 would cost.

        prices: as in a recipe, e.g. `{"cpu_hour": 0.04}`; by default the newest run's.
        """
        from clipmill.pipeline.costs.spent import cost_report
        from clipmill.pipeline.recipes.prices import read_prices

        return cost_report(self.path, None if prices is None else read_prices(prices))

    def status(self) -> Status:
        """Inputs, kept, rejected, failed, skipped and pending rows per stage; as JSON `status`."""
        from clipmill.pipeline.status import status_report

        return status_report(self._shown)

    def failures(
        self, kinds: str | Sequence[str] = (), *, history: bool = False
    ) -> duckdb.DuckDBPyRelation:
        """What failed and why: `stage, key, kind, message, attempts, at`.

        history: also failures that a retry resolved.
        """
        wanted = [kinds] if isinstance(kinds, str) else list(kinds)
        for kind in wanted:
            if kind not in ERROR_KINDS:
                raise UsageError(f"kinds: {kind!r}; allowed: {', '.join(ERROR_KINDS)}")
        condition = f" WHERE kind IN ({', '.join(map(literal, wanted))})" if wanted else ""
        view = "failures_all" if history else "failures"
        return self.sql(f"SELECT * FROM {view}{condition} ORDER BY stage, key")

    def report(
        self,
        output: str | os.PathLike[str] | None = None,
        *,
        subset: str | None = None,
        samples: int = 36,
        seed: int = 0,
    ) -> Path:
        """Writes one self-contained HTML page about the dataset or a subset; returns its path.

        samples: how many sample clips to show at most; `seed` chooses them.
        """
        from clipmill.jobs.report.page import write_report

        page = write_report(
            self._shown,
            None if output is None else Path(output),
            subset=subset,
            sample_count=samples,
            seed=seed,
        )
        return page.path

    # Maintenance

    def verify(
        self,
        *,
        media: bool = True,
        repair: bool = False,
        wait: bool = False,
        on_step: Callable[[str], None] = lambda step: None,
    ) -> Verification:
        """Re-reads everything; `faults` of the result is empty if all is well.

        media: also read the video files, to check their checksums and lengths.
        repair: set aside what is broken and can be made again; the next run makes it again.
        """
        from clipmill.pipeline.verify import verify
        from clipmill.pipeline.verify.repair import verify_and_repair

        if media:
            check_links(self.path)
        shown = str(self._shown)
        try:
            if repair:
                return verify_and_repair(
                    self.path, shown_as=shown, media=media, wait=wait, say=on_step
                )
            return verify(self.path, shown_as=shown, media=media, say=on_step)
        except PermissionError as error:
            raise ClipmillError(
                f"not allowed to read {error.filename}; run verify as the owner of the dataset"
            ) from error

    def remove(
        self,
        *,
        videos: Sequence[str] = (),
        uploaders: Sequence[str] = (),
        reason: str | None = None,
        dry_run: bool = False,
        wait: bool = False,
    ) -> Removal:
        """Permanently removes videos, by id or uploader, from tables, media and later exports.

        A dry run changes nothing and counts what would be removed.
        """
        from clipmill.pipeline.removal.under_lock import remove_videos

        return remove_videos(
            self.path, videos, uploaders, reason=reason, dry_run=dry_run, wait=wait
        )

    def index(self, *, wait: bool = False) -> IndexReport | None:
        """Updates the index, as every run does at its end; None if there is nothing to index."""
        import duckdb

        from clipmill.pipeline.catalog.index_writer import update_index
        from clipmill.pipeline.dataset.locks import dataset_lock

        with dataset_lock(self.path, "index", wait=wait):
            try:
                return update_index(self.path)
            except (OSError, duckdb.Error) as error:
                raise ClipmillError(f"the index could not be made: {error}") from error

    # Subsets and exports

    @property
    def subsets(self) -> list[str]:
        """The names of the frozen subsets."""
        from clipmill.pipeline.subsets.freeze import subset_names

        return subset_names(self.path)

    def subset(
        self,
        recipe: str | None = None,
        *,
        where: str | None = None,
        name: str | None = None,
        seed: int | None = None,
        settings: Settings = (),
        **parameters: Any,
    ) -> Subset:
        """A frozen subset: an existing one by its name alone, otherwise a new one.

        Options as in `create_subset`: `dataset.subset("internvid-div", seed=42, clips=10_000)`.
        """
        alone = where is None and name is None and seed is None and not (settings or parameters)
        if recipe is not None and alone and recipe in self.subsets:
            return self.load_subset(recipe)
        return self.create_subset(
            recipe, where=where, name=name, seed=seed, settings=settings, **parameters
        )

    def load_subset(self, name: str) -> Subset:
        """A subset that was frozen earlier."""
        from clipmill.pipeline.subsets.freeze import load_subset

        frozen = load_subset(self._shown, name)
        return Subset(self, replace(frozen, folder=frozen.folder.absolute()))

    def create_subset(
        self,
        recipe: str | None = None,
        *,
        where: str | None = None,
        name: str | None = None,
        seed: int | None = None,
        settings: Settings = (),
        on_step: Callable[[str], None] = lambda step: None,
        **parameters: Any,
    ) -> Subset:
        """Freezes the clips that a recipe or a condition selects.

        The same recipe, seed and parameters over the same clips give the same subset, which is then
        not frozen again.

        recipe: a ready-made name or a YAML file.
        where: an SQL condition instead of a recipe.
        name: by default the recipe's, or made from the condition.
        settings, parameters: the recipe's parameters, e.g. `clips=10_000`, and scorers, e.g.
            `settings={"scorers.aesthetic": "any"}`.
        """
        from clipmill.pipeline.dataset.versions import code_version
        from clipmill.pipeline.subsets.freeze import check_name, create_subset

        loaded = _subset_recipe(recipe, where, seed, settings, parameters)
        name = check_name(name if name is not None else loaded.name)
        with self._asking() as catalog, catalog.bounded():
            frozen, is_new = create_subset(
                catalog, loaded, name=name, code_version=code_version(), on_step=on_step
            )
        return Subset(self, frozen, is_new)

    def explain(
        self,
        recipe: str | None = None,
        *,
        where: str | None = None,
        seed: int | None = None,
        settings: Settings = (),
        near: int = 3,
        scores: bool = False,
        recipes: bool = False,
        on_step: Callable[[str], None] = lambda step: None,
        **parameters: Any,
    ) -> dict[str, Any]:
        """What `create_subset` would keep, rule by rule; nothing is frozen.

        near: how many clips to show on each side of a threshold.
        scores: adds `correlations` between the catalog's scores.
        recipes: adds `recipes`, what each ready-made recipe keeps and where they agree.
        """
        from clipmill.pipeline.subsets.explain import explain_recipe

        loaded = _subset_recipe(recipe, where, seed, settings, parameters)
        with self._asking() as catalog, catalog.bounded():
            return explain_recipe(
                catalog, loaded, near=near, scores=scores, recipes=recipes, on_step=on_step
            ).plain()

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
        crop: Literal["safe"] | None = None,
        documents: Documents | None = None,
        drop: float | None = None,
        seed: int | None = None,
        watcher: ExportWatcher | None = None,
    ) -> Exported:
        """Writes clips for training, as `clipmill export` does.

        crop: `safe` cuts each clip to its safe rectangle (`media="exact"`).

        Call it again after an interruption to continue.
        """
        from clipmill.pipeline.dataset.versions import code_version
        from clipmill.pipeline.exports.request import (
            ExportRequest,
            cut_options,
            interleaving_options,
            size_in_bytes,
        )
        from clipmill.pipeline.exports.run_export import run_export

        request = ExportRequest(
            self.path,
            Path(output).expanduser().absolute(),
            format,
            subset=subset,
            where=where,
            redact=redact,
            shard_bytes=size_in_bytes(shard_size, "--shard-size"),
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
            crop=crop,
        )
        with extras_explained():
            return run_export(
                request,
                code_version=code_version(),
                memory_limit=self._memory_limit,
                watcher=watcher,
            )

    def training(
        self, subset: str | None = None, where: str | None = None, **options: Any
    ) -> ClipDataset:
        """A PyTorch dataset that decodes the clips' frames; options as `clipmill.ClipDataset`."""
        with extras_explained("train"):
            from clipmill.pipeline.training import ClipDataset

        return ClipDataset(self.path, subset, where, **options)

    # The catalog

    def _catalog(self) -> Catalog:
        """The catalog of the dataset as it is now.

        The previous one closes when nothing refers to it.
        """
        if self._current is None or _times(self._watched) != self._seen:
            record = latest_run(self.path)
            self._watched = [
                self.path / name
                for name in (
                    *(RUNS, SUBSETS, AUDITS, REMOVED, INDEX, SOURCES),
                    *(
                        folder
                        for stage in (record["stages"] if record else ())
                        for step in stage["steps"]
                        for folder in step["tables"].values()
                    ),
                )
            ]
            # Before the catalog opens, so that changes made meanwhile are seen next time.
            self._seen = _times(self._watched)
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


def _subset_recipe(
    recipe: str | None,
    where: str | None,
    seed: int | None,
    settings: Settings,
    parameters: Mapping[str, Any],
) -> SubsetRecipe:
    from clipmill.pipeline.recipes.overrides import as_overrides
    from clipmill.pipeline.recipes.ready_made import SUBSET_FOLDER, subset_recipe_path
    from clipmill.pipeline.subsets.subset_recipe import load_subset_recipe, predicate_recipe

    if (recipe is None) == (where is None):
        raise UsageError("give a recipe's name or file, or a condition with where=; one of both")
    overrides = [*as_overrides(settings), *as_overrides(parameters)]
    if where is not None:
        if overrides:
            raise UsageError(
                f"{overrides[0]}: a condition has no parameters; put the value into it"
            )
        return predicate_recipe(where, seed=seed)
    assert recipe is not None  # one of the two is given
    return load_subset_recipe(
        subset_recipe_path(recipe), seed=seed, ready_made=SUBSET_FOLDER, overrides=overrides
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
