"""The public `Subset`: a frozen list of clips, for exports and training."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipmill.audit import Audit
    from clipmill.dataset import Dataset
    from clipmill.pipeline.exports.request import Format
    from clipmill.pipeline.exports.run_export import Exported
    from clipmill.pipeline.subsets.freeze import FrozenSubset
    from clipmill.pipeline.training import ClipDataset


@dataclass(frozen=True)
class Subset:
    """A frozen list of clips, with everything that determined the choice."""

    dataset: Dataset
    frozen: FrozenSubset
    is_new: bool = False
    """Whether this call froze it."""

    @property
    def name(self) -> str:
        return self.frozen.name

    @property
    def folder(self) -> Path:
        return self.frozen.folder

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

    def changes(self) -> dict[str, Any]:
        """What has become of its clips in the dataset since it was frozen."""
        from clipmill.pipeline.subsets.freeze import still_there

        with self.dataset._asking() as catalog:
            return still_there(catalog, self.frozen)

    @property
    def audits(self) -> list[Audit]:
        """The audits of its rules that have labels."""
        from clipmill.audit import Audit
        from clipmill.pipeline.subsets.audited_rules import audits_of

        return [Audit(self.dataset, record) for record in audits_of(self.dataset.path, self.info)]

    def card(self) -> str:
        """Its data card, as Markdown."""
        from clipmill.pipeline.recipes.ready_made import SUBSET_FOLDER
        from clipmill.pipeline.subsets.data_card import data_card

        records = [audit.record for audit in self.audits]
        return data_card(self.frozen, self.changes(), SUBSET_FOLDER, records)

    def _repr_markdown_(self) -> str:
        return self.card()

    def export(
        self, output: str | os.PathLike[str], format: Format = "webdataset", **options: Any
    ) -> Exported:
        """Writes its clips for training; same options as `Dataset.export`."""
        return self.dataset.export(output, format, subset=self.name, **options)

    def training(self, **options: Any) -> ClipDataset:
        """A PyTorch dataset of its clips; same options as `clipmill.ClipDataset`."""
        return self.dataset.training(self.name, **options)
