"""Renders films whose cuts are known because they were put there.

    python -m benchmarks.shots.footage_render --sources DIR --out DIR [--only NAME …]

DIR holds clips with one shot each (see annotations/sources.csv; clips that are missing are left
out, so a film then differs). Films are cut together from stretches of them with hard cuts, jump
cuts, dissolves, wipes and fades, and with flashes, pans, shake, captions and the like as non-cuts;
others are drawn. The same seed and the same clips give the same film. Clips of films for testing
are in no film for training.
"""

from __future__ import annotations

import argparse
import itertools
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np

from . import footage_drawn as drawn
from . import footage_effects as effects
from .footage_effects import Picture, Reel, Shot, Source
from .footage_films import FILMS, TEST, TRAIN, Film

Chance = np.random.Generator
METHOD = (
    "Constructed: cuts, transitions and effects are where the renderer put them; a cut frame is "
    "the 0-based index of the FIRST frame of the new shot. Each film was looked at on a sheet."
)

LINES = (
    "and then we went home",
    "what do you mean?",
    "three days later",
    "look over there",
    "no, not like this",
)


class Clips:
    """The clips of one split at one size."""

    def __init__(self, folder: Path, names: Sequence[str], size: tuple[int, int]) -> None:
        found = [p for name in names for p in sorted(folder.glob(f"{name}.*"))]
        self.size = size
        self.sources = [Source(p, size) for p in found]
        self._before: list[str] = []

    def pick(self, chance: Chance) -> Source:
        """A clip that was not among the last three."""
        choice = [s for s in self.sources if s.name not in self._before[-3:]]
        source = choice[int(chance.integers(0, len(choice)))]
        self._before.append(source.name)
        return source

    def shot(self, chance: Chance, low: int, high: int) -> Shot:
        return self.pick(chance).take(chance, int(chance.integers(low, high)))


def _lengths(rate: float, low: float, high: float) -> tuple[int, int]:
    return max(4, round(low * rate)), max(6, round(high * rate))


def mixed(chance: Chance, clips: Clips, rate: float, seconds: float) -> Reel:
    """Hard cuts between different clips, from montage (0.2 s) to calm (4 s)."""
    reel = Reel(rate)
    while len(reel.pictures) < seconds * rate:
        fast = chance.random() < 0.35
        reel.cut(clips.shot(chance, *_lengths(rate, 0.2 if fast else 0.8, 0.8 if fast else 4)))
    return reel


def jumps(chance: Chance, clips: Clips, rate: float, seconds: float) -> Reel:
    """Jump cuts: a stretch of the same shot is left out, at times with a punch-in or a mirror."""
    reel = Reel(rate)
    while len(reel.pictures) < seconds * rate:
        source = clips.pick(chance)
        pictures = source.pictures()
        place = int(chance.integers(0, max(1, len(pictures) // 4)))
        zoomed = False
        for number in range(int(chance.integers(2, 6))):
            length = int(chance.integers(*_lengths(rate, 0.6, 2.5)))
            shot = pictures[place : place + length]
            if len(shot) < 6:
                break
            if zoomed:
                shot = [effects.window(p, (0.5, 0.45), 1.25) for p in shot]
            if number and reel.pictures:
                least = max(5, 2.5 * effects.distance(shot[0], shot[1]) + 1.5)
                reel.cut_if_seen(shot, least, "jump cut, same shot")
            else:
                reel.cut(shot)
            place += len(shot) + int(chance.integers(*_lengths(rate, 0.5, 5)))
            zoomed = chance.random() < 0.4
    return reel


def gradual(chance: Chance, clips: Clips, rate: float, seconds: float) -> Reel:
    """Dissolves, fades, wipes and pushes of 8 to 30 frames; one cut in four."""
    mixes: list[tuple[str, effects.Mix]] = [("dissolve", effects.dissolve)] * 6
    mixes += [("dip_to_black", effects.through(0))] * 3 + [("dip_to_white", effects.through(255))]
    mixes += [
        ("wipe", effects.wipe(d)) for d in ("left", "right", "down", "diagonal", "clock", "iris")
    ]
    mixes += [("wipe", effects.push)]
    reel = Reel(rate)
    while len(reel.pictures) < seconds * rate:
        shot = clips.shot(chance, *_lengths(rate, 1.6, 3.5))
        steps = int(chance.integers(8, 31))
        if (
            not reel.pictures
            or chance.random() < 0.25
            or min(len(shot) - 10, reel.room()) < steps + 8
        ):
            if reel.room() > steps + 8 and chance.random() < 0.3:
                _fade(reel, steps)
            reel.cut(shot)
            continue
        kind, mix = mixes[int(chance.integers(0, len(mixes)))]
        reel.blend(shot, steps, mix, kind)
    return reel


def _fade(reel: Reel, steps: int) -> None:
    """Fades the last shot out to black and holds it; the cut that follows comes out of black."""
    black = np.zeros_like(reel.pictures[-1])
    start = len(reel.pictures) - steps
    for step in range(steps):
        reel.pictures[start + step] = effects.dissolve(
            reel.pictures[start + step], black, (step + 1) / steps
        )
    reel.note_gradual("fade_out_to_black", start, len(reel.pictures) - 1)
    reel.extend([black] * 6)


def flashes(chance: Chance, clips: Clips, rate: float, seconds: float) -> Reel:
    """White frames, camera flashes, strobing and light switches within shots."""
    reel = Reel(rate)
    while len(reel.pictures) < seconds * rate:
        start = reel.cut(clips.shot(chance, *_lengths(rate, 1.5, 4)))
        length = len(reel.pictures) - start
        if length < 30:
            continue
        at = start + int(chance.integers(8, length - 20))
        way = int(chance.integers(0, 5))
        if way == 0:
            count = int(chance.integers(1, 4))
            for n in range(count):
                reel.pictures[at + n] = np.full_like(reel.pictures[at], 255)
            reel.not_a_cut(at - 1, at + count + 1, f"{count} white frames")
        elif way == 1:
            for flash in range(int(chance.integers(1, 4))):
                for n in range(4):
                    where = at + flash * 5 + n
                    if where < len(reel.pictures):
                        reel.pictures[where] = effects.lit(
                            reel.pictures[where], 1 + 2.2 * 0.45**n, 90 * 0.4**n
                        )
            reel.not_a_cut(at - 1, at + 18, "camera flashes")
        elif way == 2:
            for n in range(14):
                if (at + n) // 2 % 2:
                    reel.pictures[at + n] = effects.lit(reel.pictures[at + n], 0.35)
            reel.not_a_cut(at - 1, at + 15, "strobing light")
        elif way == 3:
            for n in range(at, len(reel.pictures)):
                reel.pictures[n] = effects.lit(reel.pictures[n], 0.3)
            reel.not_a_cut(at - 1, at + 1, "light is switched off")
        else:
            held = reel.pictures[at]
            for n in range(8):
                reel.pictures[at + n] = held
            reel.not_a_cut(at, at + 9, "frozen for eight frames, then a jump of eight")
    return reel


def cameras(chance: Chance, clips: Clips, rate: float, seconds: float) -> Reel:
    """Fast pans over a large picture, whip zooms, and a shaking camera."""
    reel = Reel(rate)
    while len(reel.pictures) < seconds * rate:
        way = int(chance.integers(0, 4))
        shot = clips.shot(chance, *_lengths(rate, 1.2, 3))
        if way == 0:
            start = len(reel.pictures)
            place = (float(chance.uniform(0.2, 0.4)), float(chance.uniform(0.3, 0.7)))
            far = (float(chance.uniform(0.6, 0.8)), float(chance.uniform(0.3, 0.7)))
            whip = effects.pan(shot[0], place, far, int(chance.integers(6, 14)), 2.6)
            rest = [effects.window(p, far, 2.6) for p in shot]
            still = [effects.window(shot[0], place, 2.6)] * int(chance.integers(8, 20))
            reel.cut([*still, *whip, *rest])
            reel.not_a_cut(start + len(still), start + len(still) + len(whip), "whip pan")
        elif way == 1:
            steps, at = int(chance.integers(4, 9)), len(shot) // 3
            zooms = [1.0] * at + list(np.linspace(1, 2.2, steps)) + [2.2] * len(shot)
            start = reel.cut(
                [effects.window(p, (0.5, 0.5), z) for p, z in zip(shot, zooms, strict=False)]
            )
            reel.not_a_cut(start + at, start + at + steps, "whip zoom")
        elif way == 2:
            start = reel.cut(effects.shake(shot, chance, float(chance.uniform(0.004, 0.016))))
            reel.not_a_cut(start + 1, start + len(shot) - 1, "shaking camera")
        else:
            turn = 1 if chance.random() < 0.5 else -1
            wide = [
                effects.pan(shot[0], (0.25, 0.5), (0.75, 0.5), 24, 2.0),
                effects.pan(shot[0], (0.75, 0.5), (0.25, 0.5), 24, 2.0),
            ]
            both = wide[::turn]
            start = reel.cut([*both[0], *both[1]])
            reel.not_a_cut(start + 1, start + 47, "pan there and back")
    return reel


def overlays(chance: Chance, clips: Clips, rate: float, seconds: float) -> Reel:
    """Captions, lower thirds, a logo, insets and bars that come and go within shots."""
    reel = Reel(rate)
    with_logo = chance.random() < 0.6
    while len(reel.pictures) < seconds * rate:
        start = reel.cut(clips.shot(chance, *_lengths(rate, 1.5, 4.5)))
        length = len(reel.pictures) - start
        if length < 40:
            continue
        at, end = (
            start + int(chance.integers(8, 16)),
            len(reel.pictures) - int(chance.integers(0, 9)),
        )
        way = int(chance.integers(0, 5))
        text = LINES[int(chance.integers(0, len(LINES)))]
        inset = clips.shot(chance, 120, 121) if way == 3 else []
        for n in range(at, end):
            picture = reel.pictures[n]
            if way < 3:
                picture = effects.caption(picture, text, ("bottom", "third", "middle")[way])
            elif way == 3:
                picture = picture.copy()
                small = inset[min(n - at, len(inset) - 1)][::3, ::3]
                picture[8 : 8 + len(small), 8 : 8 + small.shape[1]] = small
            else:
                picture = effects.letterboxed(picture, 0.12)
            reel.pictures[n] = picture
        what = ("subtitle", "lower third", "title over the picture", "inset", "black bars")[way]
        reel.not_a_cut(at - 1, at + 1, f"{what} appears")
        if end < len(reel.pictures):
            reel.not_a_cut(end - 1, end + 1, f"{what} vanishes")
        if chance.random() < 0.3:
            _split(reel, clips, chance, rate)
    if with_logo:
        reel.pictures = [effects.logo(p) for p in reel.pictures]
    return reel


def _split(reel: Reel, clips: Clips, chance: Chance, rate: float) -> None:
    """A split screen comes by a cut; then one half changes, which is neither right nor wrong."""
    halves = [clips.shot(chance, *_lengths(rate, 2, 2.2)) for _ in range(3)]
    length = min(len(h) for h in halves)
    middle = halves[0][0].shape[1] // 2
    later = length // 2
    shot = []
    for n in range(length):
        right = halves[1][n] if n < later else halves[2][n]
        shot.append(np.concatenate([halves[0][n][:, :middle], right[:, middle:]], axis=1))
    start = reel.cut(shot, "into a split screen")
    reel.unclear(start + later - 1, start + later + 1, "one half of a split screen changes")


def _toned(
    build: Callable[..., Reel], tone: Callable[[Picture, Chance], Picture]
) -> Callable[..., Reel]:
    def make(chance: Chance, clips: Clips, rate: float, seconds: float) -> Reel:
        reel = build(chance, clips, rate, seconds)
        reel.pictures = [tone(p, chance) for p in reel.pictures]
        return reel

    return make


def _dim(picture: Picture, chance: Chance) -> Picture:
    return effects.noisy(effects.lit(picture, 0.16, 2), chance, 3)


def _old(picture: Picture, chance: Chance) -> Picture:
    x, y = 0.5 + chance.normal(0, 0.002), 0.5 + chance.normal(0, 0.003)
    moved = effects.window(effects.grey(picture), (x, y), 1.04)
    return effects.noisy(effects.lit(moved, 1 + float(chance.normal(0, 0.05))), chance, 9)


def _blended(build: Callable[..., Reel]) -> Callable[..., Reel]:
    """As a change of frame rate leaves it: the frame before each cut mixes both shots."""

    def make(chance: Chance, clips: Clips, rate: float, seconds: float) -> Reel:
        reel = build(chance, clips, rate, seconds)
        for cut, _ in reel.cuts:
            reel.pictures[cut - 1] = effects.dissolve(
                reel.pictures[cut - 1], reel.pictures[cut], 0.5
            )
        return reel

    return make


def _repeated(build: Callable[..., Reel]) -> Callable[..., Reel]:
    """Every frame twice, and a third time now and then: a film at half its file's rate."""

    def make(chance: Chance, clips: Clips, rate: float, seconds: float) -> Reel:
        reel = build(chance, clips, rate / 2, seconds)
        places = [n * 2 for n in range(len(reel.pictures) + 1)]
        reel.rate = rate
        reel.pictures = [p for p in reel.pictures for _ in range(2)]
        reel.cuts = [(places[c], note) for c, note in reel.cuts]
        for spans in (reel.gradual, reel.dont_care, reel.negatives):
            for span in spans:
                span["start_frame"] = places[span["start_frame"]]
                span["end_frame"] = min(places[span["end_frame"]] + 1, len(reel.pictures) - 1)
        return reel

    return make


def _slides(chance: Chance, clips: Clips, rate: float, seconds: float) -> Reel:
    speaker = clips.pick(chance).pictures() if chance.random() < 0.6 else []
    return drawn.slides(chance, clips.size, rate, seconds, speaker)


def _animation(chance: Chance, clips: Clips, rate: float, seconds: float) -> Reel:
    return drawn.animation(chance, clips.size, rate, seconds)


def _game(chance: Chance, clips: Clips, rate: float, seconds: float) -> Reel:
    return drawn.game(chance, clips.size, rate, seconds)


BUILDS: dict[str, Callable[..., Reel]] = {
    "mixed": mixed,
    "jumps": jumps,
    "gradual": gradual,
    "flashes": flashes,
    "cameras": cameras,
    "overlays": overlays,
    "dim mixed": _toned(mixed, _dim),
    "dim gradual": _toned(gradual, _dim),
    "old mixed": _toned(mixed, _old),
    "blended mixed": _blended(mixed),
    "repeated mixed": _repeated(mixed),
    "slides": _slides,
    "animation": _animation,
    "game": _game,
}


def annotation(film: Film, reel: Reel, path: Path) -> dict[str, Any]:
    """What edited films' annotations hold, with the times that the file itself has."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        base = float(stream.time_base or 0)
        times = sorted(p.pts * base for p in container.demux(stream) if p.pts is not None)
    count = len(reel.pictures)
    if len(times) != count:
        raise SystemExit(f"{path.name}: {len(times)} frames were written, {count} were meant")

    def spans(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        out = []
        for span in sorted(found, key=lambda s: (s["start_frame"], s["end_frame"])):
            first, last = max(0, span["start_frame"]), min(count - 1, span["end_frame"])
            ends = {"start_frame": first, "end_frame": last}
            seconds = {"start_s": round(times[first], 3), "end_s": round(times[last], 3)}
            out.append(span | ends | seconds)
        return out

    cuts = [
        {"frame": c, "time_s": round(times[c], 3)} | ({"note": n} if n else {})
        for c, n in reel.cuts
    ]
    edges = [0, *(c for c, _ in reel.cuts), count]
    return {
        "video": film.name,
        "split": film.split,
        "kind": film.kind,
        "made": "constructed",
        "n_frames": count,
        "first_pts_s": round(times[0], 3),
        "last_pts_s": round(times[-1], 3),
        "median_frame_s": round(1 / film.rate, 5),
        "n_hard_cuts": len(cuts),
        "hard_cuts": cuts,
        "gradual": spans(reel.gradual),
        "dont_care": spans(reel.dont_care),
        "hard_negatives": spans(reel.negatives),
        "shots_by_hard_cuts": [list(pair) for pair in itertools.pairwise(edges)],
        "notes": "",
        "method": METHOD,
    }


def prepared(sources: Path, out: Path) -> Path:
    """The folder of small versions of the clips, made where they are missing."""
    folder = out / "prepared"
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*TRAIN, *TEST):
        small = folder / f"{name}.mp4"
        for path in sorted(sources.glob(f"{name}.*"))[:1]:
            if not small.exists():
                effects.prepare(path, small)
    return folder


def make(film: Film, sources: Path, out: Path) -> dict[str, Any]:
    """Renders a film into `out`/videos and its annotation into `out`/cuts."""
    chance = np.random.default_rng(zlib.crc32(film.name.encode()))
    clips = Clips(prepared(sources, out), TRAIN if film.split == "train" else TEST, film.size)
    reel = BUILDS[film.build](chance, clips, film.rate, film.seconds)
    path = out / "videos" / film.name
    path.parent.mkdir(parents=True, exist_ok=True)
    effects.write(reel, path, film.quality, film.codec, film.keys)
    found = annotation(film, reel, path)
    cuts = out / "cuts"
    cuts.mkdir(exist_ok=True)
    (cuts / f"{film.name}.json").write_text(json.dumps(found, indent=1))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sources", type=Path, required=True, help="folder with the clips")
    parser.add_argument("--out", type=Path, required=True, help="folder for videos/ and cuts/")
    parser.add_argument("--only", nargs="*", default=[], help="names of films")
    options = parser.parse_args()
    for film in FILMS:
        if options.only and film.name not in options.only:
            continue
        found = make(film, options.sources, options.out)
        graduals = sum(g["shot_boundary"] for g in found["gradual"])
        cuts, non_cuts = found["n_hard_cuts"], len(found["hard_negatives"])
        print(f"{film.name}: {cuts} cuts, {graduals} gradual, {non_cuts} non-cuts", flush=True)


if __name__ == "__main__":
    main()
