"""Measures embed_images: its speed, and how many copies of real clips it finds, with hash_frames.

    python -m benchmarks.signal_models --stage embed_images [--videos FOLDER …] [--only copies]

Copies: from the middle of each film, two seconds are cut out and encoded again, as they are and in
changed forms. A copy counts as found if its cosine with the original is higher than that of any two
clips of different films (no false pair), and by its hashes if at least half of the frames differ in
at most 6 of 64 bits, as `deduplicate: {by: frames, max_distance: 6}` wants it. Films that show the
same footage belong together and are not compared.

Speed: the stage takes JPEG frames and returns half floats; the bare loop runs the same model on
prepared tensors. They take turns, and the median ratio counts.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import imageio_ffmpeg
import numpy as np
import pyarrow as pa

from benchmarks.embed import picture, seconds
from clipmill.pipeline.subsets.near import _HashedClips
from clipmill.schemas.tables import FRAME
from clipmill.stages.embed_images import NEAR_DUPLICATES, EmbedImages
from clipmill.stages.hash_frames import perceptual_hash
from clipmill.stages.media.read.images import encode_jpeg
from clipmill.stages.models.vectors import frame_mean
from clipmill.stages.protocol import Workspace

SHARED = Path("../../shared/videos")
FRAMES, SECONDS, HEIGHT = 4, 2.0, 384
SPANS = (0.5,)
"""Where in a film the spans begin, as shares of its length."""
MAX_DISTANCE = 6
SAME_FOOTAGE = ("bbb_", "tears_of_steel", "rash", "vl", "animation", "jumps", "gradual", "mixed")
"""Files whose names begin so are one film."""
COPIES = {
    "original": "null",
    "encoded again (CRF 38)": "null",
    "a third of the size": "scale=iw/3:-2",
    "other proportions (4:3)": "scale=320:240",
    "cropped to 80%": "crop=iw*0.8:ih*0.8",
    "cropped to 60%": "crop=iw*0.6:ih*0.6",
    "mirrored": "hflip",
    "0.5 s later, 1.25 times as fast": "trim=start=0.5,setpts=(PTS-STARTPTS)/1.25",
    "letterboxed (16:9 in 4:3)": "scale=480:270,pad=480:360:0:45",
    "pillarboxed (in 2.4:1)": "scale=480:360,pad=864:360:192:0",
    "brighter, less colour": "eq=brightness=0.12:contrast=0.85:saturation=0.6",
    "a bar with text over it": "drawbox=x=0:y=ih*0.8:w=iw:h=ih*0.15:color=white:t=fill",
}


@dataclass
class Clip:
    """The frames of one form of a clip."""

    film: str
    form: str
    jpegs: list[bytes]


def main(options: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--videos", type=Path, nargs="+", default=[SHARED], help="folders of films")
    parser.add_argument("--only", choices=["copies", "speed"])
    parser.add_argument("--rounds", type=int, default=5, help="times that both are timed")
    parser.add_argument("--clips", type=int, default=24, help="clips of 4 frames a round")
    given = parser.parse_args(options)
    if given.only != "copies":
        speed(given.clips, given.rounds)
    if given.only != "speed":
        copies([path for folder in given.videos for path in sorted(folder.iterdir())])


def copies(paths: Sequence[Path]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        clips = [clip for path in paths for clip in forms_of(path, Path(folder))]
    films = np.array([clip.film for clip in clips])
    originals = np.arange(0, len(clips), len(COPIES))
    print(f"{len(originals)} clips of {len(set(films))} films\n")
    found = {"hash_frames": by_hashes(clips)}
    for fit in ("model", "whole"):
        stage = EmbedImages(fit=fit, cpus=2)
        embedder = stage.load()
        vectors = np.stack([frame_mean(embedder.embed_images(clip.jpegs)) for clip in clips])
        cosines = vectors @ vectors.T
        apart = films[:, None] != films[None]
        highest = float(cosines[apart].max())
        unlike = np.quantile(cosines[apart], [0.5, 0.99, 0.9999])
        print(
            f"fit: {fit}: of different films, half of the pairs are below {unlike[0]:.2f}, 99% "
            f"below {unlike[1]:.2f}, 99.99% below {unlike[2]:.2f}, all below {highest:.3f}"
        )
        for threshold in (highest + 1e-6, *NEAR_DUPLICATES.values()):
            name = f"{fit}, {threshold:.3f}"
            found[name] = cosines >= threshold
    print("\n| copy | " + " | ".join(found) + " |\n|---|" + "---|" * len(found))
    for form in COPIES:
        if form == "original":
            continue
        cells = []
        place = list(COPIES).index(form)
        for near in found.values():
            cells.append(f"{near[originals, originals + place].mean():.2f}")
        print(f"| {form} | " + " | ".join(cells) + " |")
    apart = films[:, None] != films[None]
    false = [f"{int((near & apart).sum()) // 2}" for near in found.values()]
    print("| false pairs | " + " | ".join(false) + " |")


def by_hashes(clips: Sequence[Clip]) -> np.ndarray:
    """Which clips are near by their perceptual hashes."""
    hashes = [[perceptual_hash(jpeg, 4.0) for jpeg in clip.jpegs] for clip in clips]
    rows = pa.record_batch(
        {"rank": np.arange(len(clips)), "frame_hashes": pa.array(hashes, pa.list_(pa.uint64()))}
    )
    hashed = _HashedClips(pa.RecordBatchReader.from_batches(rows.schema, [rows]))
    earlier, later = np.triu_indices(len(clips), 1)
    near = np.zeros((len(clips), len(clips)), bool)
    near[earlier, later] = hashed.near(earlier, later, MAX_DISTANCE)
    return near | near.T


def forms_of(path: Path, folder: Path) -> Iterator[Clip]:
    """The clips of a film in all forms, by one pass of FFmpeg a span."""
    if path.suffix not in (".mp4", ".ts", ".webm", ".mov", ".avi", ".3gp"):
        return
    with av.open(str(path)) as container:
        length = (container.duration or 0) / 1e6
    film = next((name for name in SAME_FOOTAGE if path.name.startswith(name)), path.stem)
    for share in SPANS:
        begin = min(share * length, max(0.0, length - SECONDS - 0.2))
        outputs = [folder / f"{number}.mp4" for number in range(len(COPIES))]
        graph = f"[0:v]scale=-2:480,setsar=1,split={len(COPIES)}" + "".join(
            f"[s{number}]" for number in range(len(COPIES))
        )
        for number, change in enumerate(COPIES.values()):
            even = "scale=trunc(iw/2)*2:trunc(ih/2)*2"
            graph += f";[s{number}]{change},{even},setsar=1,format=yuv420p[o{number}]"
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-threads", "2"]
        command += ["-ss", f"{begin:.3f}", "-t", f"{SECONDS}", "-i", str(path)]
        command += ["-filter_complex", graph]
        for number, (form, output) in enumerate(zip(COPIES, outputs, strict=True)):
            quality = {"original": "16", "encoded again (CRF 38)": "38"}.get(form, "26")
            command += ["-map", f"[o{number}]", "-c:v", "libx264", "-preset", "ultrafast"]
            command += ["-crf", quality, str(output)]
        subprocess.run(command, stdin=subprocess.DEVNULL, check=True)
        for form, output in zip(COPIES, outputs, strict=True):
            yield Clip(film, form, kept_frames(output))


def kept_frames(path: Path) -> list[bytes]:
    """JPEGs of frames at the middles of equal parts, as a scan keeps them."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
    picked = [frames[int((i + 0.5) / FRAMES * len(frames))] for i in range(FRAMES)]
    kept = []
    for frame in picked:
        scale = min(1.0, HEIGHT / min(frame.shape[:2]))
        size = round(frame.shape[1] * scale), round(frame.shape[0] * scale)
        kept.append(encode_jpeg(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), 90))
    return kept


def speed(clips: int, rounds: int) -> None:
    import torch

    stage = EmbedImages(frames_per_clip=FRAMES, cpus=torch.get_num_threads())
    jpegs = [picture(seed, 384, 682) for seed in range(clips * FRAMES)]
    frames = [{"frame_number": i, "seconds": 0.0, "jpeg": data} for i, data in enumerate(jpegs)]
    grouped = [frames[i * FRAMES : (i + 1) * FRAMES] for i in range(clips)]
    batch = pa.table(
        {
            "clip_id": [f"clip-{i}" for i in range(clips)],
            "frames": pa.array(grouped, pa.list_(FRAME)),
        }
    )
    embedder = stage.load()
    size = embedder.batch_images
    tensors = [
        torch.from_numpy(embedder.prepare(jpegs[i : i + size])) for i in range(0, len(jpegs), size)
    ]

    def bare() -> object:
        with torch.inference_mode():
            return [embedder.image_model(tensor) for tensor in tensors]

    with stage.open(Workspace(Path(), Path())) as transform:
        bare(), transform(batch)
        times = [(seconds(bare), seconds(lambda: transform(batch))) for _ in range(rounds)]
    n = len(jpegs)
    print(
        f"{n} JPEG frames of 682 × 384, batches of {size}, {embedder.dtype}: bare model "
        f"{n / statistics.median(b for b, _ in times):.0f} images/s, embed_images "
        f"{n / statistics.median(s for _, s in times):.0f}; ratio "
        f"{statistics.median(b / s for b, s in times):.2f}\n"
    )
