"""Adds the attention map of a stage to the outputs of a network: the map that a distillation aligns."""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path

from torch import Tensor, fx, nn

from agridistill.errors import ModelError
from agridistill.models.taps import StageTap, feature_attention, stage_info

# The stage that a distillation aligns by default, given by its stride in pixels.
ATTENTION_STRIDE = 16
# A smaller peak is that of a map of zeros, which must not become NaN.
_DEAD = 1e-20


def aligned_stride(run: Path) -> int:
    """Returns the stride of the deepest stage whose attention a run aligned with its teacher's.

    That is the largest student's stride in `objective.pairs` of the run's `recipe.toml`; 16, the default of a
    distillation, for a run of `train` and for a folder without a recipe.
    """
    try:
        recipe = tomllib.loads((run / "recipe.toml").read_text(encoding="utf-8"))
        return max(int(pair["student"]) for pair in recipe["objective"]["pairs"])
    except (OSError, ValueError, KeyError, TypeError):
        return ATTENTION_STRIDE


def with_attention(network: nn.Module, stride: int) -> nn.Module:
    """Returns a network that returns `(logits, attention)` in place of logits.

    The attention `(B, H, W)` float32 is the channel mean of the squared activations of the stage, divided by its
    largest value in each photo. In an int8 network it is computed from the rounded activations.

    Args:
        network: a timm model, or what `models.int8` made of one, which is copied.
        stride: the stride of the stage, in pixels, as for `StageTap`.

    Raises:
        ModelError: the network has no stage of this stride. For a stage whose output has no height and width, the
            returned network raises it.
    """
    if not isinstance(network, fx.GraphModule):
        stage_info(network, stride)
        return _Tapped(network, stride)
    # A traced network has no stages left to tap, but each node knows the modules that it came from.
    entry = stage_info(network, stride, network.meta.get("feature_info"))
    tapped = copy.deepcopy(network)
    inside = [node for node in tapped.graph.nodes if entry["module"] in node.meta.get("nn_module_stack", {})]
    output = tapped.graph.output_node()
    tapped.add_submodule("stage_attention", _StageAttention(int(entry["num_chs"])))
    with tapped.graph.inserting_before(output):
        attention = tapped.graph.call_module("stage_attention", (inside[-1],))
    output.args = ((output.args[0], attention),)
    tapped.recompile()
    return tapped


class _Tapped(nn.Module):
    """Returns `(logits, attention)` of a network that was not traced."""

    def __init__(self, network: nn.Module, stride: int) -> None:
        super().__init__()
        self.network, self.stride = network, stride
        self.train(network.training)

    def forward(self, photos: Tensor) -> tuple[Tensor, Tensor]:
        with StageTap(self.network, [self.stride]) as tap:
            logits: Tensor = self.network(photos)
            return logits, _unit_attention(tap.features()[self.stride])


class _StageAttention(nn.Module):
    """Computes the attention of a stage's output inside a traced network."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, features: Tensor) -> Tensor:
        if features.dim() != 4 or features.shape[1] != self.channels:
            raise ModelError(
                f"a stage with output (B, {self.channels}, H, W)",
                str(tuple(features.shape)),
                "choose a model whose stages keep height and width, as MobileNetV3's do",
            )
        return _unit_attention(features)


def _unit_attention(features: Tensor) -> Tensor:
    attention = feature_attention(features)
    return attention / attention.amax(dim=(1, 2), keepdim=True).clamp_min(_DEAD)
