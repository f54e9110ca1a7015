"""Collects feature maps and spatial attention of a timm model by hooks, or adds attention maps to its outputs."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from timm.models.swin_transformer import SwinTransformerBlock, window_partition, window_reverse
from torch import Tensor, fx, nn
from torch.utils.hooks import RemovableHandle

from agridistill.errors import ModelError

# The stage that a distillation aligns by default, given by its stride in pixels.
ATTENTION_STRIDE = 16
# A smaller peak is that of a map of zeros, which must not become NaN.
_DEAD = 1e-20


def feature_attention(features: Tensor) -> Tensor:
    """Computes an attention map `(B, H, W)` float32 from features `(B, C, H, W)`: the channel mean of their squares.

    Source: Zagoruyko and Komodakis 2017, arXiv 1612.03928, section 3.1, F_sum^2, here divided by C.

    Example:
        >>> feature_attention(torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]]]))
        tensor([[[5., 2.]]])
    """
    return features.float().square().mean(dim=1)


def window_attention(block: SwinTransformerBlock, x: Tensor) -> Tensor:
    """Computes the attention that each position of the image receives in one Swin block, for each head.

    A position is a key in the attention of its window; the result is its mean attention over the window's queries. The
    attention is computed as in the block (norm, cyclic shift, padding, relative position bias, shift mask, softmax),
    but without dropout. Then windows are merged, padding is cropped and the shift is undone. Padded positions count as
    keys, as in the block, but not as queries. Before the crop, the values of each window sum to 1.

    Args:
        block: a block of a timm Swin Transformer (version 1).
        x: the block's input, `(B, H, W, C)`.

    Returns:
        `(B, heads, H, W)`, float32, values in [0, 1]. Its mean over the heads is an attention map `(B, H, W)`.

    Source: Liu et al. 2021, arXiv 2103.14030, equation 4 and figure 4.
    """
    batch, height, width, _ = x.shape
    attn, (win_h, win_w), (shift_h, shift_w) = block.attn, block.window_size, block.shift_size
    padding = (0, 0, 0, -width % win_w, 0, -height % win_h)
    with torch.autocast(device_type=x.device.type, enabled=False):
        tokens = torch.roll(block.norm1(x.to(attn.qkv.weight.dtype)), shifts=(-shift_h, -shift_w), dims=(1, 2))
        tokens = F.pad(tokens, padding)
        mask: Any = block.get_attn_mask(tokens) if getattr(block, "dynamic_mask", False) else block.attn_mask
        probabilities = _window_softmax(attn, window_partition(tokens, block.window_size).flatten(1, 2), mask)
        real = window_partition(F.pad(x.new_ones(1, height, width, 1, dtype=torch.float32), padding), block.window_size)
        queries = real.view(-1, 1, 1, win_h * win_w)
        queries = (queries / queries.sum(dim=-1, keepdim=True)).repeat(batch, 1, 1, 1)
        received = (queries @ probabilities).squeeze(2).transpose(1, 2)
        windows = received.reshape(-1, win_h, win_w, attn.num_heads)
        merged = window_reverse(windows, block.window_size, tokens.shape[1], tokens.shape[2])[:, :height, :width]
        unshifted: Tensor = torch.roll(merged, shifts=(shift_h, shift_w), dims=(1, 2)).permute(0, 3, 1, 2)
    return unshifted


def _window_softmax(attn: Any, windows: Tensor, mask: Tensor | None) -> Tensor:
    """Computes attention probabilities `(windows, heads, queries, keys)` float32 of tokens `(windows, tokens, C)`."""
    query, key, _ = attn.qkv(windows).float().unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    scores = (query * attn.scale) @ key.transpose(-2, -1) + attn._get_rel_pos_bias().float()
    if mask is not None:
        scores = (scores.unflatten(0, (-1, mask.shape[0])) + mask.float().unsqueeze(1)).flatten(0, 1)
    probabilities: Tensor = scores.softmax(dim=-1)
    return probabilities


class StageTap:
    """Collects feature maps or window attention of a timm model by hooks during its forward pass.

    A stride selects the last module of that stride in timm's `feature_info` (Swin: `layers.2` at 16, `layers.3` at 32;
    MobileNetV3-Large: `blocks.4` at 16, `blocks.6` at 32). Each forward pass can be read once with `features()` or
    `maps()`; reading again before the next pass is an error. With `torch.compile`, create the tap before the first
    compiled forward pass.

    Args:
        model: a timm model, which may be wrapped by DDP or `torch.compile`.
        strides: strides of the stages to collect, in input pixels (16 gives a 14x14 map of a 224 px photo); may be
            empty.
        kind: "activation" collects the output of a stage. "window" collects the window attention of a stage's last two
            Swin blocks; their mean hides the borders of windows, because only one of them has shifted windows.

    Raises:
        ModelError: the model has no stage of such a stride, or no Swin blocks for "window".

    Example:
        >>> import timm
        >>> model = timm.create_model("mobilenetv3_small_100", num_classes=2).eval()
        >>> with StageTap(model, strides=[16]) as tap:
        ...     _ = model(torch.zeros(1, 3, 64, 64))
        ...     tap.maps()[16].shape
        torch.Size([1, 4, 4])
    """

    def __init__(
        self, model: nn.Module, strides: Iterable[int], kind: Literal["activation", "window"] = "activation"
    ) -> None:
        # DDP wraps a model as `module`, torch.compile as `_orig_mod`.
        while isinstance(inner := getattr(model, "_orig_mod", getattr(model, "module", None)), nn.Module):
            model = inner
        self._kind = kind
        self._channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        self._channels: dict[int, int] = {}
        self._blocks: dict[int, list[Any]] = {}
        self._held: dict[tuple[int, int], Tensor] = {}
        self._handles: list[RemovableHandle] = []
        # Find all modules before setting the first hook, so that an error leaves the model unchanged.
        stages: dict[int, nn.Module] = {}
        for stride in strides:
            entry = stage_info(model, stride)
            self._channels[stride] = int(entry["num_chs"])
            stages[stride] = model.get_submodule(entry["module"])
            if kind == "window":
                blocks: list[Any] = [m for m in stages[stride].modules() if isinstance(m, SwinTransformerBlock)]
                if not blocks:
                    expected = "a Swin Transformer for window attention"
                    raise ModelError(expected, type(model).__name__, "use the attention of feature maps instead")
                self._blocks[stride] = blocks[-2:]
        for stride, stage in stages.items():
            if kind == "activation":
                self._handles.append(stage.register_forward_hook(partial(self._hold_output, stride)))
            for index, block in enumerate(self._blocks.get(stride, [])):
                self._handles.append(block.register_forward_pre_hook(partial(self._hold_input, stride, index)))

    def channels(self, stride: int) -> int:
        """Returns the number of channels of the feature map at a stride."""
        return self._channels[stride]

    def map_count(self, stride: int) -> int:
        """Returns how many maps of each photo `maps()` gives at a stride: 1, or with "window" the number of heads."""
        return int(self._blocks[stride][0].attn.num_heads) if self._kind == "window" else 1

    def features(self) -> dict[int, Tensor]:
        """Returns the feature maps `(B, C, H, W)` of the last forward pass by stride, with their gradient history.

        Raises a ModelError if there was no forward pass since the last call, or the kind is "window".
        """
        if self._kind == "window":
            raise ModelError(
                'a StageTap of kind "activation" for features()', 'kind "window"', 'use StageTap(kind="activation")'
            )
        held = self._take()
        return {stride: held[stride, 0] for stride in self._channels}

    def maps(self) -> dict[int, Tensor]:
        """Returns the attention maps of the last forward pass by stride, in float32.

        They are `(B, H, W)`, or `(B, heads, H, W)` with the kind "window". Window attention is computed during this
        call: call it before the weights change. Raises a ModelError if there was no forward pass since the last call.
        """
        if self._kind == "activation":
            return {stride: feature_attention(features) for stride, features in self.features().items()}
        held = self._take()
        maps: dict[int, Tensor] = {}
        for stride, blocks in self._blocks.items():
            # After a forward pass without gradients the maps have none, even if the parameters require gradients.
            with torch.set_grad_enabled(torch.is_grad_enabled() and held[stride, 0].requires_grad):
                parts = [window_attention(block, held[stride, index]) for index, block in enumerate(blocks)]
                maps[stride] = torch.stack(parts).mean(dim=0)
        return maps

    def __enter__(self) -> StageTap:
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._held.clear()

    def __getstate__(self) -> dict[str, Any]:
        # A copy of a tapped model (a moving average, for example) starts empty: activations cannot be copied.
        return {**self.__dict__, "_held": {}}

    def _take(self) -> dict[tuple[int, int], Tensor]:
        if self._channels and not self._held:
            expected = "a forward pass before each reading of a StageTap"
            got = "no forward pass since the last reading"
            raise ModelError(expected, got, "run the model, then read features() or maps() once")
        held, self._held = self._held, {}
        return held

    def _hold_output(self, stride: int, module: nn.Module, args: Any, output: Any) -> None:
        channels, axis = self._channels[stride], 3 if self._channels_last else 1
        shape = tuple(output.shape) if isinstance(output, Tensor) else ()
        if len(shape) != 4 or shape[axis] != channels:
            raise ModelError(
                f"a stage with 4-D output that has {channels} channels on axis {axis}",
                f"shape {shape} at stride {stride}",
                "choose a model whose stages keep height and width, as Swin's and MobileNetV3's do",
            )
        self._held[stride, 0] = output.permute(0, 3, 1, 2) if self._channels_last else output

    def _hold_input(self, stride: int, index: int, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._held[stride, index] = args[0]


def stage_info(model: nn.Module, stride: int, info: Any = None) -> Mapping[str, Any]:
    """Returns timm's `feature_info` entry for a stride: that of the deepest stage with this stride.

    Its "module" is the path of the stage's module, its "num_chs" the number of channels. `info` replaces the model's
    own `feature_info`. Raises a ModelError if the model has no stage of this stride.
    """
    name = type(model).__name__
    info = info or getattr(model, "feature_info", None)
    if not info:
        raise ModelError("a timm model with feature_info", name, "create it with timm.create_model")
    stages = {int(entry["reduction"]): entry for entry in getattr(info, "info", info) if entry.get("module")}
    if stride not in stages:
        offered = ", ".join(str(known) for known in sorted(stages))
        raise ModelError(f"the stride of a stage of {name}", str(stride), f"choose one of {offered}")
    found: Mapping[str, Any] = stages[stride]
    return found


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

    The attention `(B, H, W)` float32 is the channel mean of the squared activations of the stage with this stride,
    divided by its largest value in each photo. In an int8 network, from `quantised`, it is computed from the rounded
    activations. A timm model or an int8 network is copied.

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
    def __init__(self, network: nn.Module, stride: int) -> None:
        super().__init__()
        self.network, self.stride = network, stride
        self.train(network.training)

    def forward(self, photos: Tensor) -> tuple[Tensor, Tensor]:
        with StageTap(self.network, [self.stride]) as tap:
            logits: Tensor = self.network(photos)
            return logits, _unit_attention(tap.features()[self.stride])


class _StageAttention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, features: Tensor) -> Tensor:
        if features.dim() != 4 or features.shape[1] != self.channels:
            remedy = "choose a model whose stages keep height and width, as MobileNetV3's do"
            raise ModelError(f"a stage with output (B, {self.channels}, H, W)", str(tuple(features.shape)), remedy)
        return _unit_attention(features)


def _unit_attention(features: Tensor) -> Tensor:
    attention = feature_attention(features)
    return attention / attention.amax(dim=(1, 2), keepdim=True).clamp_min(_DEAD)
