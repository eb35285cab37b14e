"""Batches of images that are filled across callers."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from clipmill.schemas.errors import RowFailed
from clipmill.stages.models.batch_size import BatchSize
from clipmill.stages.models.image_queue import ImageQueue


class Pictures:
    """An image is its first byte; `bad` can't be read."""

    size = (2, 3)

    def into(self, jpeg: bytes, out: np.ndarray) -> None:
        if jpeg == b"bad":
            raise RowFailed("bad_media", "not an image")
        out[:] = jpeg[0]


class Model:
    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.sizes: list[int] = []

    def __call__(self, pixels) -> np.ndarray:
        self.sizes.append(len(pixels))
        time.sleep(self.seconds)
        return pixels.numpy()[:, 0, 0, :1].astype(np.float32)


def queue(model: Model, size: int = 4, *, ahead: bool = True) -> ImageQueue:
    return ImageQueue(Pictures(), model, BatchSize(size), threads=3, ahead=ahead)


@pytest.mark.parametrize("ahead", [True, False])
def test_every_caller_gets_the_rows_of_its_images(ahead):
    model = Model(0.002)
    made = queue(model, ahead=ahead)

    def call(start: int) -> list[float]:
        return [float(row[0]) for row in made.rows([bytes([start + i]) for i in range(5)])]

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(call, range(0, 240, 5)))
    assert found == [[float(start + i) for i in range(5)] for start in range(0, 240, 5)]
    assert sum(model.sizes) == 240
    assert model.sizes.count(4) > 48  # 5 images a call, in batches of 4: filled across calls


@pytest.mark.parametrize("ahead", [True, False])
def test_bad_image_fails_only_its_caller(ahead):
    made = queue(Model(0.01), ahead=ahead)

    def call(jpegs: list[bytes]) -> object:
        try:
            return len(made.rows(jpegs))
        except RowFailed as failed:
            return failed.kind

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(call, [[b"a"] * 3, [b"b", b"bad", b"b"], [b"c"] * 3]))
    assert found == [3, "bad_media", 3]
    assert made.rows([]) == []


def test_batches_are_halved_when_memory_runs_out():
    class Short(Model):
        def __call__(self, pixels) -> np.ndarray:
            if len(pixels) > 2:
                raise MemoryError
            return super().__call__(pixels)

    model = Short()
    made = queue(model, size=8)
    assert [float(row[0]) for row in made.rows([bytes([i]) for i in range(20)])] == list(range(20))
    assert max(model.sizes) == 2


def test_next_batch_is_prepared_while_one_is_in_the_model():
    """With decoding as slow as the model, both together take little longer than one of them."""
    both = threading.Event()

    class Watched(Pictures):
        def into(self, jpeg: bytes, out: np.ndarray) -> None:
            super().into(jpeg, out)
            if in_model.is_set():
                both.set()

    in_model = threading.Event()

    class Slow(Model):
        def __call__(self, pixels) -> np.ndarray:
            in_model.set()
            both.wait(60)
            return super().__call__(pixels)

    made = ImageQueue(Watched(), Slow(), BatchSize(2), threads=1, ahead=True)
    assert len(made.rows([b"x"] * 40)) == 40
    assert both.is_set()


def test_queue_and_its_model_go_when_nobody_has_them():
    model = Model()
    made = queue(model)
    made.rows([b"x"] * 9)
    with pytest.raises(RowFailed):
        made.rows([b"x", b"bad"])
    gone = weakref.ref(made)
    gc.disable()
    try:
        del made
        deadline = time.monotonic() + 60
        while gone() is not None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        gc.enable()
