"""Every caption, embedding and score belongs to its own clip.

The frames of these videos have an id in their pixels: video, shot and time, as a grid of bright
and dark blocks. A stand-in captioner behind an HTTP server reads it back, sometimes answering 500;
sources are shuffled, shards and batches small, rows retried, on both engines.
"""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import random
import re
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from clipmill.jobs.run import run
from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.stages.models.embedders import ClipEmbedder
from clipmill.stages.references import ModelReference
from tests.tiny_clip import save_tiny_clip

ROOT = Path(__file__).resolve().parent.parent
DIMENSIONS = 48
GRID = 4
VIDEO_BITS, SHOT_BITS, TIME_BITS = 6, 3, 7
FPS = 12
SHOT_FRAMES = (20, 31, 26)
FRAMES_A_TICK = 3
DARK, BRIGHT = 110, 200


def paint(video: int, shot: int, tick: int) -> np.ndarray:
    """A 360 × 640 RGB frame whose blocks encode the id; neighbouring shots differ in hue."""
    bits = f"{video:0{VIDEO_BITS}b}{shot:0{SHOT_BITS}b}{tick:0{TIME_BITS}b}"
    blocks = np.array([BRIGHT if bit == "1" else DARK for bit in bits], np.uint8)
    value = cv2.resize(blocks.reshape(GRID, GRID), (640, 360), interpolation=cv2.INTER_NEAREST)
    frame = np.zeros((360, 640, 3), np.uint8)
    frame[..., 0 if shot % 2 else 2] = value
    frame[..., 1] = value // 8
    return frame


def read(picture: np.ndarray) -> str:
    """`v<video> s<shot> t<tick>` from an RGB picture of any size."""
    value = cv2.resize(picture.max(axis=2), (GRID * 20, GRID * 20), interpolation=cv2.INTER_AREA)
    centres = value.reshape(GRID, 20, GRID, 20)[:, 6:14, :, 6:14].mean(axis=(1, 3))
    bits = "".join("1" if v > (DARK + BRIGHT) / 2 else "0" for v in centres.ravel())
    shot_at, tick_at = VIDEO_BITS, VIDEO_BITS + SHOT_BITS
    return f"v{int(bits[:shot_at], 2)} s{int(bits[shot_at:tick_at], 2)} t{int(bits[tick_at:], 2)}"


def write_video(path: Path, video: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=FPS, options={"crf": "18", "preset": "ultrafast"}
        )
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        stream.time_base = Fraction(1, FPS)
        number = 0
        for shot, length in enumerate(SHOT_FRAMES):
            for _ in range(length):
                picture = paint(video, shot, number // FRAMES_A_TICK)
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                container.mux(stream.encode(frame))
                number += 1
        container.mux(stream.encode())


class _Reader(http.server.BaseHTTPRequestHandler):
    """Answers a chat with pictures by their pixels' ids, one with text by that text."""

    dice = random.Random(3)
    lock = threading.Lock()
    refused = 0

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            refuse = self.dice.random() < 0.08
            type(self).refused += refuse
        if refuse:
            self._answer(500, {"error": {"message": "no luck"}})
            return
        content = body["messages"][-1]["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        pictures = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        said = [self._read(url) for url in pictures] or [
            part["text"] for part in parts if part["type"] == "text"
        ]
        self._answer(
            200,
            {
                "id": "x",
                "object": "chat.completion",
                "model": "reader",
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": "stop",
                        "message": {"role": "assistant", "content": "; ".join(said)},
                    }
                ],
            },
        )

    def do_GET(self) -> None:
        self._answer(200, {"object": "list", "data": [{"id": "reader"}]})

    @staticmethod
    def _read(url: str) -> str:
        data = np.frombuffer(base64.b64decode(url.partition(",")[2]), np.uint8)
        return read(cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB))

    def _answer(self, status: int, value: dict) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def reader() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Reader)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1#reader"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for video in range(8):
        write_video(folder / f"{video}.mp4", video)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP and an aesthetic head with random weights, for which any two pictures differ."""
    folder = tmp_path_factory.mktemp("models")
    save_tiny_clip(
        folder / "clip", dimensions=DIMENSIONS, size=64, preprocessing={"resize_mode": "squash"}
    )
    weight = np.random.default_rng(1).normal(size=(1, DIMENSIONS)).astype(np.float32)
    save_file({"weight": weight, "bias": np.array([5.0], np.float32)}, folder / "head.safetensors")
    return folder


# Both engines take the same paths through the stages; `make test` has the riskier one.
@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_every_caption_embedding_and_score_belongs_to_its_clip(videos, models, tmp_path, engine):
    paths = sorted(videos.glob("*.mp4"))
    random.Random(5).shuffle(paths)
    (tmp_path / "videos.csv").write_text(
        "path,title\n" + "".join(f"{path},{path.stem}\n" for path in paths)
    )
    with reader() as url:
        recipe = {
            "sources": [{"path": "videos.csv", "url_column": "path"}],
            "shard_videos": 3,
            "engine": engine,
            "ray": {"num_cpus": 2},
            "stages": {
                "download_videos": {"min_duration_seconds": None, "min_height": None},
                "split_clips": {"min_scene_len": "6", "min_clip_seconds": 0.5},
                "caption_frames": {
                    "model": url,
                    "fine_frames_per_second": 4.0,
                    "skip_similar": 0,
                    "batch_rows": 4,
                    "batch_images": 5,
                },
                "summarize_captions": {
                    "model": url,
                    "batch_rows": 3,
                    "prompt": "{{ coarse }}; {{ fine | join('; ') }}",
                },
                "embed_clips": {"model": str(models / "clip"), "dtype": "float32", "batch_rows": 5},
                "score_similarity": {
                    "model": str(models / "clip"),
                    "dtype": "float32",
                    "batch_rows": 2,
                },
                "score_aesthetic": {"head": str(models / "head.safetensors")},
            },
        }
        path = tmp_path / "ids.yaml"
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))
        dataset = tmp_path / "dataset"
        run(load_recipe(path), dataset)
        with contextlib.suppress(Exception):
            run(load_recipe(path), dataset, retry_kinds=[])
    assert _Reader.refused > 0
    check(dataset, models)


def check(dataset: Path, models: Path) -> None:
    embedder = ClipEmbedder(
        ModelReference(folder=str(models / "clip")), setting="clip", dtype="float32"
    )
    head = load_file(models / "head.safetensors")
    with open_catalog(dataset) as catalog:

        def ask(query: str) -> list[dict]:
            return catalog.ask(query).read_all().to_pylist()

        clips = ask("SELECT * FROM clips")
        titles = {
            row["video_id"]: int(row["title"]) for row in ask("SELECT video_id, title FROM videos")
        }
        stored = ask("SELECT clip_id, embeddings, embedding_seconds FROM embeddings")
        assert ask("SELECT * FROM failures") == []
    assert len(titles) == 8
    assert len(clips) == 8 * len(SHOT_FRAMES)
    expected = expected_vectors(embedder, dataset, stored)
    embeddings = {row["clip_id"]: np.array(row["embeddings"], np.float64) for row in stored}
    check_embeddings(embeddings, expected)
    for clip in clips:
        video = titles[clip["video_id"]]
        shot = [sum(SHOT_FRAMES[:i]) for i in range(3)].index(clip["start_frame"])
        ticks = range(
            clip["start_frame"] // FRAMES_A_TICK, (clip["end_frame"] - 1) // FRAMES_A_TICK + 1
        )
        assert clip["captions_fine"], clip["clip_id"]
        for fine in clip["captions_fine"]:
            tick = round(fine["seconds"] * FPS) // FRAMES_A_TICK
            assert fine["text"] == f"v{video} s{shot} t{tick}", clip["clip_id"]
        said = [clip["caption_coarse"], *clip["caption"].split("; ")]
        for text in said:
            found = re.fullmatch(r"v(\d+) s(\d+) t(\d+)", text)
            assert found, text
            assert (int(found[1]), int(found[2])) == (video, shot), clip["clip_id"]
            assert int(found[3]) in ticks
        own = embeddings[clip["clip_id"]].mean(axis=0)
        text = embedder.embed_texts([clip["caption"]])[0]
        assert clip["similarity"] == pytest.approx(own @ text / np.linalg.norm(own), abs=2e-3)
        scores = embeddings[clip["clip_id"]] @ head["weight"][0] + head["bias"][0]
        assert clip["aesthetic"] == pytest.approx(scores.max(), abs=1e-2)


def check_embeddings(stored: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Half floats equal those of a clip's own frames, and differ from any other clip's."""
    for clip, vectors in stored.items():
        equal = {
            other: np.mean(vectors.astype(np.float16) == made.astype(np.float16))
            for other, made in expected.items()
        }
        assert equal.pop(clip) > 0.95
        assert max(equal.values()) < 0.8


def expected_vectors(
    embedder: ClipEmbedder, dataset: Path, embeddings: list[dict]
) -> dict[str, np.ndarray]:
    """Per clip: the embeddings of its video's kept frames at the times in its row.

    The captions prove that those frames are the clip's own: they are read from them.
    """
    kept = {}
    for path in (dataset / "frames").rglob("[!.]*.parquet"):
        for row in pq.read_table(path).to_pylist():
            kept[row["video_id"], row["seconds"]] = row["jpeg"]
    return {
        row["clip_id"]: embedder.embed_images(
            [kept[row["clip_id"].rsplit("-", 2)[0], at] for at in row["embedding_seconds"]]
        )
        for row in embeddings
    }
