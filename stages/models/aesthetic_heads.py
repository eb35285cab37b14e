"""LAION's aesthetic heads: from an image embedding of length 1 to a score.

V1 (`sa_0_4_vit_*_linear.pth`) is one linear layer. V2 (`*-l14-linearMSE.pth`) is five linear
layers with only dropout between them, so they fold into one vector and one bias. V2's `-reluMSE`
variants have activations and stay a network. V1 and V2 use different scales, although both look
like 1 to 10.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clipmill.schemas.errors import ClipmillError, UsageError

_LINEAR_LAYERS = (0, 2, 4, 6, 7)
_RELU_LAYERS = (0, 3, 6, 9, 11)
_WHERE = (
    "LAION's are at github.com/LAION-AI/aesthetic-predictor (V1) and "
    "github.com/christophschuhmann/improved-aesthetic-predictor (V2)"
)


@dataclass(frozen=True)
class AestheticHead:
    """Layers of (weights of shape (outputs, inputs), bias), with ReLU between them."""

    layers: tuple[tuple[np.ndarray, np.ndarray], ...]

    @property
    def dimensions(self) -> int:
        """Length of the embeddings that it scores."""
        return int(self.layers[0][0].shape[1])

    def __call__(self, embeddings: np.ndarray) -> np.ndarray:
        """Scores of embeddings of length 1, of shape (n, dimensions)."""
        values = np.asarray(embeddings, np.float64)
        for i, (weights, bias) in enumerate(self.layers):
            if i:
                values = np.maximum(values, 0)
            values = values @ weights.T + bias
        return values[:, 0]


def load_head(path: Path) -> AestheticHead:
    """A head from a `.pth` or `.safetensors` file, in float64, folded if that is exact.

    Raises UsageError if the file doesn't exist, ClipmillError if it holds no known head.
    """
    if not path.is_file():
        raise UsageError(
            f"score_aesthetic.head: no file {path}; {_WHERE}; point to it "
            "with --set score_aesthetic.head=/path/to/file"
        )
    try:
        state = _read(path)
        if set(state) == {"weight", "bias"}:
            layers = [(state["weight"], state["bias"])]
        else:
            indexes = sorted({int(name.split(".")[1]) for name in state})
            layers = [(state[f"layers.{i}.weight"], state[f"layers.{i}.bias"]) for i in indexes]
            if tuple(indexes) == _LINEAR_LAYERS:
                layers = [fold(layers)]
            elif tuple(indexes) != _RELU_LAYERS:
                raise ValueError(f"layers {indexes}")
        if len(layers[-1][1]) != 1 or any(weights.ndim != 2 for weights, _ in layers):
            raise ValueError("it does not end in one number")
        return AestheticHead(tuple(layers))
    # Malformed pickles and safetensors raise many kinds of errors.
    except Exception as error:
        raise ClipmillError(
            f"score_aesthetic.head: {path} is not an aesthetic head: expected `weight` and `bias` "
            "of one linear layer, or the `layers.*` of LAION's V2 heads "
            f"({type(error).__name__}: {error})"
        ) from error


def fold(layers: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """One linear layer that is equivalent to several consecutive ones."""
    weights, bias = layers[0]
    for next_weights, next_bias in layers[1:]:
        weights, bias = next_weights @ weights, next_weights @ bias + next_bias
    return weights, bias


def _read(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return {name: values.astype(np.float64) for name, values in load_file(path).items()}
    import torch

    state = torch.load(path, map_location="cpu", weights_only=True)
    return {name: tensor.double().numpy() for name, tensor in state.items()}
