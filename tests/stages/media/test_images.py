"""Images are prepared with OpenCV in one step, close to what models were trained with."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from clipmill.schemas.errors import RowFailed
from clipmill.stages.media.read.images import decode_jpeg, fit, to_batch


def picture(height: int, width: int) -> np.ndarray:
    """Smooth colours with edges and some texture, like film frames."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    y, x = rows / height, columns / width
    image = np.stack([x, y, 0.5 + 0.5 * np.sin(9 * x + 5 * y)], axis=-1) * 220
    image[(x - 0.6) ** 2 + (y - 0.4) ** 2 < 0.04] = (250, 40, 30)
    image += (
        np.random.default_rng(0)
        .normal(0, 6, (height // 4 + 1, width // 4 + 1, 3))
        .repeat(4, axis=0)
        .repeat(4, axis=1)[:height, :width]
    )
    return image.clip(0, 255).astype(np.uint8)


def jpeg(image: np.ndarray, quality: int = 95) -> bytes:
    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def test_decoding_returns_rgb() -> None:
    image = np.zeros((32, 48, 3), np.uint8)
    image[..., 0] = 250
    decoded = decode_jpeg(jpeg(image))
    assert decoded.shape == (32, 48, 3)
    assert decoded.dtype == np.uint8
    assert decoded.reshape(-1, 3).mean(0) == pytest.approx([250, 0, 0], abs=4)


def test_decoding_agrees_with_pil() -> None:
    data = jpeg(picture(90, 121))
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(decode_jpeg(data) - expected).mean() < 1


def test_grey_jpeg_has_three_channels() -> None:
    data = cv2.imencode(".jpg", np.full((8, 8), 77, np.uint8))[1].tobytes()
    assert decode_jpeg(data).shape == (8, 8, 3)


@pytest.mark.parametrize("data", [b"", b"<html>", jpeg(picture(64, 64))[:100]])
def test_invalid_image_is_bad_media(data: bytes) -> None:
    with pytest.raises(RowFailed) as caught:
        decode_jpeg(data)
    assert caught.value.kind == "bad_media"


def test_crop_squash_and_pad_keep_the_right_part() -> None:
    """A white disc in the middle of a wide frame: round when cropped or padded, not squashed."""
    image = np.zeros((100, 200, 3), np.uint8)
    cv2.circle(image, (100, 50), 40, (255, 255, 255), -1)

    def extent(mode: str) -> tuple[int, int]:
        mask = fit(image, (50, 50), mode)[..., 0] > 127
        return mask.any(axis=1).sum(), mask.any(axis=0).sum()

    assert extent("crop") == pytest.approx((40, 40), abs=1)
    assert extent("squash") == pytest.approx((40, 20), abs=1)
    assert extent("pad") == pytest.approx((20, 20), abs=1)
    padded = fit(np.full((100, 200, 3), 9, np.uint8), (50, 50), "pad", fill=200)
    assert (padded[:12] == 200).all()
    assert (padded[13:37] == 9).all()


@pytest.mark.parametrize("mode", ["crop", "squash", "pad"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 999), (999, 3), (224, 224), (225, 223), (37, 41)])
def test_every_shape_is_resized_to_the_requested_size(mode: str, shape: tuple[int, int]) -> None:
    assert fit(np.zeros((*shape, 3), np.uint8), (48, 64), mode).shape == (48, 64, 3)


def test_values_are_normalised_per_channel() -> None:
    image = np.zeros((10, 10, 3), np.uint8)
    image[:] = (0, 128, 255)
    batch = to_batch([image], (4, 4), (0.1, 0.2, 0.3), (0.5, 0.25, 2.0))
    assert batch.shape == (1, 3, 4, 4)
    assert batch.dtype == np.float32
    expected = [-0.2, (128 / 255 - 0.2) / 0.25, 0.35]
    np.testing.assert_allclose(batch[0].reshape(3, -1).T, np.tile(expected, (16, 1)), atol=1e-5)


def test_no_images_make_an_empty_batch() -> None:
    assert to_batch([], (4, 6), (0, 0, 0), (1, 1, 1)).shape == (0, 3, 4, 6)
