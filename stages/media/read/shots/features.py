"""Describes candidates by the thumbnails around them, for the model.

Windows are [candidates, 16, 27, 48, 3] in RGB: eight pictures before the candidate, and eight from
it on. Most of what describes it is there twice: of the two shots that meet at it only, since
another cut nearby says nothing about it, and of the whole window, which shows that a flash or a
blow leads back to the same picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clipmill.stages.media.read.shots import compared
from clipmill.stages.media.read.shots.candidates import GROWTH, Differences, Relative
from clipmill.stages.media.read.shots.windows import AFTER, BEFORE, Floats, Indexes

_IN_SHOTS = (
    "nearest_of_4",
    "mean_of_4",
    "nearest_by_step",
    "nearest",
    "nearest_later",
    "nearest_of_8",
    "stillness",
    "moved_by_most",
    "moved_by_median",
    "moved_evenly_lit",
    "quarter_by_most",
    "alike_across",
    "alike_within",
    "unlike",
    "unlike_by_step",
    "least",
)
NAMES = (
    "l1_times",
    "correlation_times",
    "histogram_times",
    "l1",
    "correlation",
    "histogram",
    "moved",
    "evenly_lit",
    "changed_blocks",
    "unchanged_blocks",
    "changed_textured",
    "unchanged_textured",
    "textured",
    "contrast",
    *_IN_SHOTS,
    *(f"{name}_beyond" for name in _IN_SHOTS),
    "returns_after",
    "returns_before",
    "pictures_before",
    "pictures_after",
    "of_strongest",
    "strong_around",
)
# Levels by which a block differs if it shows something else.
_CHANGED = 12.0
# Levels of noise, added to both sides of a ratio.
_NOISE, _NOISE_WITHIN = 1.0, 1.5
# Another candidate ends a shot from this share of one's own difference on.
_AS_STRONG = 0.5
# Steps within which others count.
_FAR = 24
_T, _N = BEFORE, BEFORE + AFTER
# Without the pictures next to the cut if they are blends of both shots.
_ACROSS = [(_T, _T - 1), (_T + 1, _T - 2), (_T, _T - 2), (_T + 1, _T - 1)]
_WITHIN = [(_T - 2, _T - 3), (_T - 3, _T - 4), (_T + 2, _T + 1), (_T + 3, _T + 2)]


def described(
    windows: np.ndarray,
    shown: Indexes,
    numbers: Indexes,
    places: Indexes,
    found: Relative,
    values: Differences,
) -> Floats:
    """The features of the candidates at these places: [candidates, names].

    `shown` are the pictures of the windows, [candidates, 16], and `numbers` those of all frames.
    """
    if not len(places):
        return np.empty((0, len(NAMES)))
    strength = _strength(values)[places]
    steps = values.steps[places]
    windows, share = compared.without_bars(windows)
    luma = compared.luma_of(windows)
    seen = _Seen(
        compared.distances(windows),
        compared.unlike(luma),
        compared.alike_colours(windows),
        compared.moved(luma, _ACROSS + _WITHIN),
        compared.moved(compared.even(luma), [*_ACROSS, _WITHIN[0], _WITHIN[2]]).mean(2),
        np.diff(numbers[shown], axis=1) / steps[:, None],
    )
    own = _own_rows(shown, places, strength, len(values.l1))
    around = np.clip(places[:, None] + np.array([-1, 0, 1]), 0, len(values.l1) - 1)

    def most(series: Floats) -> Floats:
        found: Floats = np.nan_to_num(series)[around].max(1)
        return found

    near = np.abs(places[:, None] - places[None]) <= _FAR * steps[:, None]
    strongest = np.where(near, strength[None], 0).max(1)
    columns = [
        np.log(np.nan_to_num(found.l1)[places] + 0.1),
        np.log(most(found.correlation) + 0.1),
        np.log(most(found.histogram) + 0.1),
        np.log(np.nan_to_num(values.l1)[places] / share + 1),
        most(values.correlation),
        most(values.histogram),
        *_blocks(luma, seen),
        np.log(luma.std((2, 3), dtype=np.float32).max(1) + 1),
        *_in_shots(seen.rows(own)),
        *_in_shots(seen),
        *_returns(seen, own),
        BEFORE - own[:, 0],
        own[:, -1] - BEFORE + 1,
        np.log((strength + _NOISE) / (strongest + _NOISE)),
        np.log((near & (strength[None] >= _AS_STRONG * strength[:, None])).sum(1)),
    ]
    return np.stack(columns, 1)


def _strength(values: Differences) -> Floats:
    """The differences, as of neighbouring frames."""
    found: Floats = np.nan_to_num(values.l1) / np.maximum(values.gaps, 1.0) ** GROWTH
    return found


def _own_rows(shown: Indexes, places: Indexes, strength: Floats, count: int) -> Indexes:
    """Rows of the windows, with those of other shots replaced by the nearest of one's own.

    Shots end at other places that differ about as much.
    """
    first, last = np.zeros_like(places), np.full_like(places, count - 1)
    for i in range(len(places)):
        enough = _AS_STRONG * strength[i]
        before = np.flatnonzero(strength[max(i - _N, 0) : i] >= enough)
        after = np.flatnonzero(strength[i + 1 : i + 1 + _N] >= enough)
        if len(before):
            first[i] = places[max(i - _N, 0) + before[-1]]
        if len(after):
            last[i] = places[i + 1 + after[0]] - 1
    rows = np.arange(_N)
    lowest = np.minimum((shown < first[:, None]).sum(1), BEFORE - 1)
    highest = np.maximum((shown <= last[:, None]).sum(1) - 1, BEFORE)
    return np.clip(rows, lowest[:, None], highest[:, None])


@dataclass(frozen=True)
class _Seen:
    """What was compared: tables of all pairs of a window, blocks, and the steps between."""

    apart: Floats
    unlike: Floats
    colours: Floats
    blocks: Floats
    lit: Floats
    gaps: Floats

    def rows(self, chosen: Indexes) -> _Seen:
        """With these rows in place of those that are there.

        Blocks are compared close to the candidate; where a row is repeated, `gaps` is 0.
        """
        count = np.arange(len(chosen))[:, None, None]
        pairs = (count, chosen[:, :, None], chosen[:, None, :])
        at = np.concatenate([np.zeros((len(chosen), 1)), np.cumsum(self.gaps, 1)], 1)
        gaps = np.diff(np.take_along_axis(at, chosen, 1), axis=1)
        tables = (self.apart[pairs], self.unlike[pairs], self.colours[pairs])
        return _Seen(*tables, self.blocks, self.lit, gaps)


def _returns(seen: _Seen, own: Indexes) -> list[Floats]:
    """How far the shot before the candidate is shown again after the next one, and the other way
    round, as after a flash: differences, of those at the candidate."""
    rows = np.arange(_N)[None, :, None]
    nearest = np.log(_nearest(seen.rows(own).apart[:, :_T, _T:]) + 1)
    later, earlier = rows > own[:, -1:, None], rows < own[:, :1, None]
    found = []
    for beyond, beside in ((later, slice(_T - 3, _T)), (earlier, slice(_T, _T + 3))):
        apart = np.where(beyond, seen.apart[:, :, beside], np.inf).min((1, 2))
        found.append(np.minimum(np.log(apart + 1) - nearest, 0))
    return found


def _blocks(luma: np.ndarray, seen: _Seen) -> list[Floats]:
    """What motion and light don't explain across the candidate."""
    nearest = _clear(seen.blocks)
    changed = nearest > _CHANGED
    textured = compared.textured(luma[:, [0, BEFORE - 1, BEFORE, _N - 1]])
    known = np.maximum(textured.sum(1), 1)
    only = np.sort(np.where(textured, nearest, np.inf), 1)
    low = only[np.arange(len(only)), (known - 1) // 4]
    return [
        np.log(_clear(seen.blocks.mean(2)) + 1),
        np.log(_clear(seen.lit) + 1),
        changed.mean(1),
        np.log(np.quantile(nearest, 0.25, axis=1) + 1),
        (changed & textured).sum(1) / known,
        np.log(np.where(np.isfinite(low), low, 0.0) + 1),
        textured.mean(1),
    ]


def _clear(across: Floats) -> Floats:
    """What the first two pairs both have, or one of the next two, which leave a picture out."""
    found: Floats = np.maximum.reduce(
        [np.minimum(across[:, 0], across[:, 1]), across[:, 2], across[:, 3]]
    )
    return found


def _in_shots(seen: _Seen) -> list[Floats]:
    """Pictures on both sides against each other, and against those of their own side.

    The picture next to the cut may be a blend of both shots, as in films of a changed frame rate:
    it doesn't count among its own side's, and the sides are also compared without it.
    """
    across = seen.apart[:, :_T, _T:]
    clear = np.maximum.reduce([across[:, -4:, :4], across[:, -5:-1, :4], across[:, -4:, 1:5]])
    nearest = _nearest(across)
    within = np.maximum(_inside(seen, _T - 7, _T - 1), _inside(seen, _T + 1, _T + 7))
    rows = np.arange(_N - 1)
    moves = _per_step(seen.apart[:, rows, rows + 1], seen.gaps)
    sides = (moves[:, : _T - 2], moves[:, _T + 1 :])
    quiet, lively = np.sort([_median(side) for side in sides], axis=0)
    apart = seen.gaps[:, [min(pair) for pair in _WITHIN]]
    inside = _per_step(seen.blocks.mean(2)[:, 4:], apart)
    lit = _per_step(seen.lit[:, 4:], apart[:, [0, 2]])
    moved = _clear(seen.blocks.mean(2))
    unlike = _nearest(seen.unlike[:, :_T, _T:])
    changes = _per_step(seen.unlike[:, rows, rows + 1], seen.gaps)
    change = np.maximum(_most(changes[:, _T - 7 : _T - 2]), _most(changes[:, _T + 1 : _T + 6]))
    found = {
        "nearest_of_4": _log_ratio(nearest, within),
        "mean_of_4": _log_ratio(clear.mean((1, 2)), within),
        "nearest_by_step": _log_ratio(nearest, np.maximum(*map(_most, sides))),
        "nearest": np.log(nearest + 1),
        "nearest_later": _log_ratio(across[:, -4:, 4:].min((1, 2)), within),
        "nearest_of_8": _log_ratio(across.min((1, 2)), within),
        "stillness": np.log((quiet + 0.5) / (lively + 0.5)),
        "moved_by_most": _log_ratio(moved, _most(inside)),
        "moved_by_median": _log_ratio(moved, _median(inside)),
        "moved_evenly_lit": _log_ratio(_clear(seen.lit), _most(lit)),
        "quarter_by_most": _log_ratio(
            np.quantile(_clear(seen.blocks), 0.25, axis=1), _most(inside)
        ),
        **_colours(seen.colours),
        "unlike": np.log(unlike + 0.02),
        "unlike_by_step": np.log((unlike + 0.02) / (change + 0.03)),
    }
    # What any of these explains is no cut: motion, light, more motion than before, an overlay.
    explained = ("moved_by_most", "moved_evenly_lit", "nearest_by_step", "quarter_by_most")
    least = np.minimum.reduce([found[name] for name in (*explained, "unlike_by_step")])
    return [*found.values(), least]


def _nearest(across: Floats) -> Floats:
    """The smallest difference of four pictures before and four after, also without the next one."""
    parts = (across[:, -4:, :4], across[:, -5:-1, :4], across[:, -4:, 1:5])
    found: Floats = np.maximum.reduce([part.min((1, 2)) for part in parts])
    return found


def _inside(seen: _Seen, first: int, last: int) -> Floats:
    """The median difference of different pictures of a side."""
    one, other = np.triu_indices(last - first, 1)
    found = seen.apart[:, first + one, first + other]
    gaps = np.cumsum(seen.gaps[:, first : last - 1], 1)
    at = np.concatenate([np.zeros((len(gaps), 1)), gaps], 1)
    return _median(np.where(at[:, one] == at[:, other], np.nan, found))


def _colours(alike: Floats) -> dict[str, Floats]:
    """How alike the colours of both sides are, and those within the sides."""
    before, after = slice(_T - 6, _T), slice(_T, _T + 6)
    lengths = [np.sqrt(alike[:, side, side].mean((1, 2))) for side in (before, after)]
    return {
        "alike_across": alike[:, before, after].mean((1, 2)) / np.prod(lengths, axis=0),
        "alike_within": np.minimum(alike[:, _T - 6, _T - 1], alike[:, _T, _T + 5]),
    }


def _per_step(values: Floats, gaps: Floats) -> Floats:
    """Differences as of pictures a step apart; NaN where a picture is repeated."""
    found: Floats = np.where(gaps > 0, values / np.maximum(gaps, 1.0) ** GROWTH, np.nan)
    return found


def _median(values: Floats) -> Floats:
    """Of those that are known, 0 if none is: [candidates]."""
    ordered = np.sort(values, 1)  # NaN comes last
    count = np.count_nonzero(~np.isnan(values), 1)
    rows = np.arange(len(values))
    low, high = np.maximum(count - 1, 0) // 2, np.minimum(count // 2, values.shape[1] - 1)
    found: Floats = np.where(count > 0, (ordered[rows, low] + ordered[rows, high]) / 2, 0.0)
    return found


def _most(values: Floats) -> Floats:
    found: Floats = np.nan_to_num(values).max(1)
    return found


def _log_ratio(across: Floats, within: Floats) -> Floats:
    found: Floats = np.log((across + _NOISE) / (within + _NOISE_WITHIN))
    return found
