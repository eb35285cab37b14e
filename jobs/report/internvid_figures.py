"""InternVid's published figures, and which columns of this dataset are comparable.

From the paper's text and figures (arXiv 2307.06942, version 2). Shares are in per cent; a last bin
that the paper leaves open is the remainder to 100.
"""

from __future__ import annotations

from dataclasses import dataclass

from clipmill.pipeline.catalog.catalog import Catalog
from clipmill.schemas.errors import UsageError

CITATION = (
    "Wang et al., InternVid: A Large-scale Video-Text Dataset for Multimodal Understanding "
    "and Generation, arXiv 2307.06942 v2"
)
CITATION_URL = "https://arxiv.org/abs/2307.06942"

VIDEOS = "7.1 million"
SOURCE_HOURS = "about 760,000"
CLIPS = "234 million"
MEAN_CLIP_SECONDS = 11.7
MEAN_CAPTION_WORDS = 17.6


@dataclass(frozen=True)
class Share:
    """A published share of the values from `low` to `high`; None is unbounded.

    `low` is included unless `opened`, `high` is excluded unless `closed`. `percent` is None if no
    share is published; `above` means that the paper says "more than" it.
    """

    label: str
    low: float | None
    high: float | None
    percent: float | None
    opened: bool = False
    closed: bool = False
    above: bool = False


SOURCE_DURATION_MINUTES = (
    Share("≤ 5 min", None, 5, 49, closed=True),
    Share("5–10 min", 5, 10, 26, opened=True, closed=True),
    Share("10–20 min", 10, 20, 17, opened=True, closed=True),
    Share("> 20 min", 20, None, 8, opened=True),
)
CLIP_SECONDS_BINS = (
    Share("0–2 s", None, 2, None),
    Share("2–4 s", 2, 4, None),
    Share("4–10 s", 4, 10, None),
    Share("10–20 s", 10, 20, None),
    Share("20–30 s", 20, 30, None),
    Share("30 s or more", 30, None, None),
)
CLIP_SECONDS = (
    Share("≤ 10 s", None, 10, 85, closed=True),
    Share("> 10 s", 10, None, 15, opened=True),
)
CAPTION_WORDS = (
    Share("under 10 words", None, 10, 34),
    Share("10–20 words", 10, 20, 55, closed=True),
    Share("over 20 words", 20, None, 11, opened=True),
)
SHORT_SIDE_PIXELS = (
    Share("under 360 px", None, 360, None),
    Share("360–719 px", 360, 720, 15),
    Share("720 px", 720, 720, 85, closed=True),
    Share("721–1079 px", 720, 1080, None, opened=True),
    Share("1080 px or more", 1080, None, None),
)
SIMILARITY = (Share("0.3–0.4", 0.3, 0.4, 80, above=True),)
AESTHETIC = (Share("4–6", 4, 6, 75),)

# The ready-made subset recipe that says which of our scorers is the paper's.
_RECIPES = {"similarity": "internvid-flt", "aesthetic": "internvid-aes"}
SCORES = {"similarity": SIMILARITY, "aesthetic": AESTHETIC}
SCORERS = {"similarity": "UMT-SIM", "aesthetic": "LAION's aesthetic predictor, largest of 4 frames"}


def comparable_columns(catalog: Catalog) -> dict[str, str]:
    """Columns of `clips` on InternVid's scale, with their score: similarity, aesthetic.

    Only columns that were made by the paper's scorer, according to the run's record.
    """
    from clipmill.pipeline.recipes.ready_made import SUBSET_FOLDER, subset_recipe_path
    from clipmill.pipeline.subsets.scorers import resolve
    from clipmill.pipeline.subsets.subset_recipe import load_subset_recipe

    found = {}
    for score, name in _RECIPES.items():
        recipe = load_subset_recipe(subset_recipe_path(name), ready_made=SUBSET_FOLDER)
        try:
            scorers = resolve({score: recipe.scorers[score]}, catalog, recipe=name)
        except UsageError:
            continue
        found[scorers[score].column] = score
    return found
