"""score_aesthetic: folded heads equal their networks; scores belong to their clips."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.stages.models.aesthetic_heads import load_head
from clipmill.stages.models.vectors import as_column, unit
from clipmill.stages.score_aesthetic import ScoreAesthetic
from tests.tiny_clip import transformed

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
WIDTHS = (1024, 128, 64, 16, 1)


def network(dimensions: int, *, relu: bool, widths: Sequence[int] = WIDTHS):
    """The architecture of LAION's V2 heads during training."""
    import torch

    torch.manual_seed(0)
    layers: list[torch.nn.Module] = []
    for i, width in enumerate(widths):
        layers.append(torch.nn.Linear(dimensions, width))
        if i < len(widths) - 1:
            layers += [torch.nn.ReLU()] if relu else []
            layers += [torch.nn.Dropout(0.2)] if i < len(widths) - 2 else []
        dimensions = width

    class Head(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(*layers)

    return Head().double().eval()


def by_network(head, embeddings: np.ndarray) -> np.ndarray:
    import torch

    with torch.inference_mode():
        return head.layers(torch.from_numpy(embeddings))[:, 0].numpy()


def embeddings(dimensions: int, count: int = 40) -> np.ndarray:
    return unit(np.random.default_rng(0).normal(size=(count, dimensions)))


def shared(name: str) -> Path:
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"LAION's weights are not here: {path}")
    return path


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("relu", [False, True])
def test_head_equals_its_network(tmp_path, relu: bool, suffix: str) -> None:
    """The one without activations is folded to one vector and a bias without changing results."""
    import torch
    from safetensors.torch import save_file

    trained = network(96, relu=relu)
    path = tmp_path / f"head{suffix}"
    save = save_file if suffix == ".safetensors" else torch.save
    save({name: tensor.contiguous() for name, tensor in trained.state_dict().items()}, path)
    head = load_head(path)
    assert len(head.layers) == (5 if relu else 1)
    assert head.dimensions == 96
    points = embeddings(96)
    np.testing.assert_allclose(head(points), by_network(trained, points), atol=1e-12)


@pytest.mark.parametrize(
    "name",
    [
        "sac+logos+ava1-l14-linearMSE.pth",
        "ava+logos-l14-linearMSE.pth",
        "ava+logos-l14-reluMSE.pth",
    ],
)
def test_laion_v2_heads_equal_the_unfolded_network(name: str) -> None:
    import torch

    path = shared(f"aesthetic_v2/{name}")
    trained = network(768, relu="relu" in name)
    trained.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    head = load_head(path)
    assert len(head.layers) == (5 if "relu" in name else 1)
    points = embeddings(768)
    np.testing.assert_allclose(head(points), by_network(trained.double(), points), atol=1e-9)


def test_laions_folded_head_has_its_known_bias_and_length() -> None:
    ((weights, bias),) = load_head(shared("aesthetic_v2/sac+logos+ava1-l14-linearMSE.pth")).layers
    assert bias[0] == pytest.approx(5.23665, abs=1e-5)
    assert np.linalg.norm(weights) == pytest.approx(17.9956, abs=1e-4)


@pytest.mark.parametrize(("size", "dimensions"), [("l_14", 768), ("b_32", 512), ("b_16", 512)])
def test_laion_v1_heads_are_one_layer(size: str, dimensions: int) -> None:
    head = load_head(shared(f"aesthetic_v1/sa_0_4_vit_{size}_linear.pth"))
    assert head.dimensions == dimensions
    assert head(embeddings(dimensions)).shape == (40,)
    if size == "l_14":
        assert head.layers[0][1][0] == pytest.approx(3.5294, abs=1e-4)


@pytest.fixture
def head(tmp_path) -> Path:
    """Scores the first of six numbers, times ten, plus one."""
    import torch

    path = tmp_path / "first.pth"
    weights = torch.zeros(1, 6)
    weights[0, 0] = 10
    torch.save({"weight": weights, "bias": torch.ones(1)}, path)
    return path


def batch(clips: dict[str, list[float]]) -> pa.Table:
    """Clips whose frames score 1 + 10 × the given cosines."""
    vectors = [
        np.array([[c, (1 - c * c) ** 0.5, 0, 0, 0, 0] for c in clip]).reshape(-1, 6)
        for clip in clips.values()
    ]
    return pa.table({"clip_id": list(clips), "embeddings": as_column(vectors)})


@pytest.mark.parametrize(("over_frames", "expected"), [("max", 6.0), ("mean", 3.0), ("min", 1.0)])
def test_frames_become_one_score(head, tmp_path, over_frames: str, expected: float) -> None:
    stage = ScoreAesthetic(head=head, over_frames=over_frames)
    rows = transformed(stage, tmp_path, batch({"x": [0.1, 0.5, 0.0]}))
    assert rows[0]["aesthetic"] == pytest.approx(expected, abs=0.01)
    assert rows[0]["aesthetic_reason"] is None


def test_scores_belong_to_their_clip_for_any_batching(head, tmp_path) -> None:
    clips = {f"clip-{i}": [i / 20] * (1 + i % 3) for i in range(15)}
    table = batch(clips).take(pa.array(np.random.default_rng(1).permutation(15)))
    rows = transformed(
        ScoreAesthetic(head=head), tmp_path, *(table.slice(i, 4) for i in range(0, 15, 4))
    )
    assert {row["clip_id"]: round(row["aesthetic"], 1) for row in rows} == {
        key: 1 + 10 * value[0] for key, value in clips.items()
    }


def test_impossible_score_is_null_with_a_reason(head, tmp_path) -> None:
    rows = transformed(
        ScoreAesthetic(head=head),
        tmp_path,
        batch({"none": [], "nan": [float("nan")], "good": [0.2]}),
    )
    assert [row["aesthetic"] for row in rows[:2]] == [None, None]
    assert "no embedding" in rows[0]["aesthetic_reason"]
    assert "not finite" in rows[1]["aesthetic_reason"]
    assert rows[2]["aesthetic"] == pytest.approx(3, abs=0.01)


def test_error_for_embeddings_of_another_length_names_both(head, tmp_path) -> None:
    table = pa.table({"clip_id": ["x"], "embeddings": as_column([np.ones((2, 8))])})
    with pytest.raises(ClipmillError, match=r"first\.pth scores embeddings of 6.*have 8"):
        transformed(ScoreAesthetic(head=head), tmp_path, table)


def test_missing_head_error_says_where_to_get_it(tmp_path) -> None:
    message = re.escape("github.com/LAION-AI/aesthetic-predictor")
    with pytest.raises(UsageError, match=message):
        load_head(tmp_path / "head.pth")


def test_invalid_head_is_refused(tmp_path) -> None:
    """Other layers would fold to something that was never trained; pickled code is not run."""
    import torch

    other = tmp_path / "other.pth"
    torch.save(network(8, relu=False, widths=(4, 2, 1)).state_dict(), other)
    garbage = tmp_path / "garbage.pth"
    garbage.write_bytes(b"cos\nsystem\n(S'exit 3'\ntR.")
    wide = tmp_path / "wide.pth"
    torch.save({"weight": torch.zeros(2, 8), "bias": torch.zeros(2)}, wide)
    for path in (other, garbage, wide):
        with pytest.raises(ClipmillError, match="is not an aesthetic head"):
            load_head(path)


def test_fingerprint_depends_on_the_heads_bytes(head, tmp_path) -> None:
    one = ScoreAesthetic(head=head)
    copy = tmp_path / "copy.pth"
    copy.write_bytes(head.read_bytes())
    assert ScoreAesthetic(head=copy).identity() == one.identity()
    copy.write_bytes(head.read_bytes() + b" ")
    assert ScoreAesthetic(head=copy).identity() != one.identity()
    assert ScoreAesthetic.score == "aesthetic"
