"""A network that computes as its int8 artefact will: batch norm folded, and rounding wherever the artefact rounds.

Traced once, as a graph of convolutions, activations, sums and products; the places of the roundings follow from what
int8 engines fuse (a convolution with the ReLU after it) and what they store (every other result).
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable
from typing import Any

import torch
from timm.layers._fx import is_notrace_module
from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from agridistill.errors import ModelError
from agridistill.manifest import Preprocessing
from agridistill.models.equalisation import equalise
from agridistill.models.rounding import ActivationRounding, Ranges, RoundedConv2d, RoundedLinear


class GlobalMean(nn.Module):
    """The mean over all positions, as one operator: converters write adaptive pooling as half a dozen."""

    def __init__(self, *, keepdim: bool) -> None:
        super().__init__()
        self.keepdim = keepdim

    def forward(self, values: Tensor) -> Tensor:
        """`(B, C, H, W)` to `(B, C, 1, 1)` with `keepdim`, else to `(B, C)`."""
        return values.mean((2, 3), keepdim=self.keepdim)


class PhotoLevels(nn.Module):
    """A normalised photo as an int8 engine takes it: its pixels, whose 256 levels need no rounding.

    Moved and scaled alike in all channels, near to mean 0 and deviation 1; the level of 0 is what convolutions pad
    with, so it lies where the mean of a channel is.

    Args:
        preprocessing: how the photo was normalised.
    """

    factor: Tensor
    offset: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
        self.scale = 1 / (255 * float(std.mean()))
        self.zero_point = min(255, max(0, round(255 * float(mean.mean()))))
        # (pixel - zero_point) * scale, of pixel = 255 * (value * std + mean)
        factor, offset = 255 * std * self.scale, (255 * mean - self.zero_point) * self.scale
        self.register_buffer("factor", factor.view(1, -1, 1, 1), persistent=False)
        self.register_buffer("offset", offset.view(1, -1, 1, 1), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        """`(B, 3, H, W)` to the same shape: (pixel - `zero_point`) * `scale`."""
        return values * self.factor + self.offset

    @torch.no_grad()
    def fold_into(self, conv: nn.Conv2d) -> None:
        """Makes a convolution that takes normalised photos take these."""
        bias = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach().clone()
        conv.weight /= self.factor
        bias -= (conv.weight * self.offset).sum((1, 2, 3))
        conv.bias = nn.Parameter(bias)


class UnitClamp(nn.Module):
    """What is left of a hard sigmoid whose slope and offset are in the convolution before it: values from 0 to 1.

    The rounding after it clips the same, so a file needs no operator for it.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Any shape in, the same out."""
        return values.clamp(0, 1)


_FUSED = (nn.ReLU, nn.ReLU6, UnitClamp)
_STORED = (nn.Conv2d, nn.Linear, *_FUSED, nn.Hardswish, nn.Hardsigmoid, nn.SiLU, nn.Sigmoid, GlobalMean)
_STORED_FUNCTIONS = (operator.add, operator.mul, torch.add, torch.mul)
_STORED_METHODS = ("mean",)
# These only choose or move values: what they give has the levels that they were given.
_MOVES = (PhotoLevels, nn.Identity, nn.Dropout, nn.Flatten, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_MOVING = (torch.flatten, "flatten", "view", "reshape", "contiguous")


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        leaves = (nn.Conv2d, nn.Linear, BatchNormAct2d, SelectAdaptivePool2d)
        return isinstance(m, leaves) or is_notrace_module(type(m)) or super().is_leaf_module(m, module_qualified_name)


def quantised(network: nn.Module, preprocessing: Preprocessing, *, equalised: bool = True) -> fx.GraphModule:
    """The same network with folded batch norm and a rounding at each place where an int8 artefact has one.

    Args:
        network: a convolutional classifier, whose weights are copied.
        preprocessing: of its input.
        equalised: gives neighbouring convolutions channels of like size first (`models.equalisation`).

    Returns:
        Takes `(B, 3, H, W)` normalised photos, gives `(B, K)` logits. Not calibrated yet.

    Raises:
        ModelError: a network with operators that int8 is not defined for here (a Swin, for one).
    """
    graph = folded(network)
    _refuse_others(graph, type(network).__name__)
    if equalised:
        equalise(graph)
    _fold_hard_sigmoids(graph)
    _take_pixels(graph, preprocessing, type(network).__name__)
    _round_weights(graph)
    _round_activations(graph)
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph


def folded(network: nn.Module) -> fx.GraphModule:
    """A copy of the network for inference, each batch norm folded into the convolution before it, if there is one.

    Raises:
        ModelError: a network that cannot be traced.
    """
    model = copy.deepcopy(network).eval()
    try:
        graph = fx.GraphModule(model, _Tracer().trace(model))
    except Exception as error:  # what torch.fx raises where control flow depends on data is not documented
        raise ModelError(
            "a convolutional network",
            f"{type(network).__name__}, which cannot be traced ({error})",
            "export it in fp32",
        ) from None
    _fold_batch_norm(graph)
    for name, module in list(graph.named_modules()):
        if isinstance(module, SelectAdaptivePool2d) and module.pool_type in ("avg", "fast", "fastavg"):
            _replace(graph, name, GlobalMean(keepdim=isinstance(module.flatten, nn.Identity)))
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph


@torch.no_grad()
def calibrate(network: nn.Module, batches: Iterable[Tensor], *, ranges: Ranges = "least_error") -> None:
    """Fits the roundings of activations to representative samples.

    Args:
        network: from `quantised`.
        batches: each `(B, 3, H, W)`, normalised.
        ranges: how each range is chosen (`ActivationRounding.calibrate`).
    """
    roundings = [module for module in network.modules() if isinstance(module, ActivationRounding)]
    network.eval()
    for rounding in roundings:
        rounding.observe()
    for batch in batches:
        network(batch)
    for rounding in roundings:
        rounding.calibrate(ranges)


def with_rounded_logits(network: nn.Module, batches: Iterable[Tensor]) -> fx.GraphModule:
    """A copy that rounds its logits to 8 bits as well, for engines without float operators.

    Its classifier is a convolution of one position: engines agree to the bit on these, not on fully connected layers
    with a scale for each output.

    Args:
        network: from `quantised`, calibrated.
        batches: as for `calibrate`; their logits are not clipped.

    Raises:
        ModelError: a network that does not end with a linear classifier.
    """
    if not isinstance(network, fx.GraphModule):
        raise ModelError("a network rounded to int8", type(network).__name__, "round it first")
    graph = copy.deepcopy(network)
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    last = output.all_input_nodes[0]
    linear = graph.get_submodule(str(last.target)) if last.op == "call_module" else None
    if not isinstance(linear, RoundedLinear):
        raise ModelError("a network that ends with a linear classifier", str(last.target), "export it without micro")
    conv = RoundedConv2d(linear.in_features, linear.out_features, 1, bias=True)
    bias = torch.zeros(linear.out_features) if linear.bias is None else linear.bias
    conv.load_state_dict({"weight": linear.weight[:, :, None, None], "bias": bias})
    rounding = ActivationRounding()
    one_position = nn.Unflatten(1, (linear.in_features, 1, 1))
    _replace(graph, str(last.target), nn.Sequential(one_position, conv, rounding, nn.Flatten()))
    graph.recompile()
    rounding.observe()
    graph.eval()
    with torch.no_grad():
        for batch in batches:
            graph(batch)
    # The greatest logit is the answer: of all values it is the last to be clipped.
    rounding.calibrate("min_max")
    return graph


def _fold_batch_norm(graph: fx.GraphModule) -> None:
    modules = dict(graph.named_modules())
    for node in list(graph.graph.nodes):
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        (source,) = node.all_input_nodes
        conv = modules.get(str(source.target)) if source.op == "call_module" else None
        if not isinstance(conv, nn.Conv2d) or len(source.users) != 1:
            continue
        _replace(graph, str(source.target), fuse_conv_bn_eval(conv, norm))
        activation = norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity()
        if isinstance(activation, nn.Identity):
            node.replace_all_uses_with(source)
            graph.graph.erase_node(node)
        else:
            _replace(graph, str(node.target), activation)


def _refuse_others(graph: fx.GraphModule, name: str) -> None:
    """Whatever is not listed would be computed in float between roundings, or not at all."""
    modules = dict(graph.named_modules())
    for node in graph.graph.nodes:
        if node.op == "call_module":
            fits = isinstance(modules[str(node.target)], (*_STORED, *_MOVES))
        elif node.op in ("call_function", "call_method"):
            fits = node.target in (*_STORED_FUNCTIONS, *_STORED_METHODS, *_MOVING)
        else:
            fits = node.op in ("placeholder", "output")
        if not fits:
            what = modules[str(node.target)]._get_name() if node.op == "call_module" else node.name
            raise ModelError("a network of convolutions for int8", f"{what} in {name}", "export it in fp32")


def _take_pixels(graph: fx.GraphModule, preprocessing: Preprocessing, name: str) -> None:
    """Folds mean and standard deviation into the first convolution: it adds up pixels as they are."""
    modules = dict(graph.named_modules())
    (photo,) = (node for node in graph.graph.nodes if node.op == "placeholder")
    users = [modules.get(str(node.target)) for node in photo.users]
    if len(users) != 1 or not isinstance(users[0], nn.Conv2d) or users[0].groups != 1:
        first = ", ".join("an operator" if user is None else user._get_name() for user in users)
        raise ModelError("a network that begins with one convolution", f"{first} in {name}", "export it in fp32")
    levels = PhotoLevels(preprocessing)
    levels.fold_into(users[0])
    graph.add_submodule("photo_levels", levels)
    with graph.graph.inserting_after(photo):
        node = graph.graph.call_module("photo_levels", (photo,))
    photo.replace_all_uses_with(node, delete_user_cb=lambda user: user is not node)


@torch.no_grad()
def _fold_hard_sigmoids(graph: fx.GraphModule) -> None:
    """Takes x / 6 + 1 / 2 into the convolution that gives x: int8 formats have no hard sigmoid of their own."""
    modules = dict(graph.named_modules())
    for node in graph.graph.nodes:
        if node.op != "call_module" or not isinstance(modules[str(node.target)], nn.Hardsigmoid):
            continue
        (source,) = node.all_input_nodes
        conv = modules.get(str(source.target)) if source.op == "call_module" else None
        if not isinstance(conv, nn.Conv2d) or len(source.users) != 1:
            continue
        bias = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias
        conv.weight /= 6
        conv.bias = nn.Parameter(bias / 6 + 0.5)
        _replace(graph, str(node.target), UnitClamp())


def _round_weights(graph: fx.GraphModule) -> None:
    for name, module in list(graph.named_modules()):
        rounded: nn.Module
        if isinstance(module, nn.Conv2d):
            if type(module) is not nn.Conv2d or module.padding_mode != "zeros":
                raise ModelError("plain convolutions", f"{type(module).__name__} at '{name}'", "export it in fp32")
            rounded = RoundedConv2d(
                module.in_channels,
                module.out_channels,
                module.kernel_size,  # type: ignore[arg-type]
                module.stride,  # type: ignore[arg-type]
                module.padding,  # type: ignore[arg-type]
                module.dilation,  # type: ignore[arg-type]
                module.groups,
                bias=module.bias is not None,
            )
        elif isinstance(module, nn.Linear):
            rounded = RoundedLinear(module.in_features, module.out_features, bias=module.bias is not None)
        else:
            continue
        rounded.load_state_dict(module.state_dict())
        _replace(graph, name, rounded)


def _round_activations(graph: fx.GraphModule) -> None:
    modules = dict(graph.named_modules())
    roundings = nn.ModuleDict()
    graph.add_submodule("roundings", roundings)
    for node in list(graph.graph.nodes):
        if not _is_stored(node, modules):
            continue
        name = node.name
        roundings[name] = ActivationRounding()
        with graph.graph.inserting_after(node):
            rounded = graph.graph.call_module(f"roundings.{name}", (node,))
        node.replace_all_uses_with(rounded, delete_user_cb=lambda user, rounded=rounded: user is not rounded)


def _is_stored(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether an int8 engine stores this result in 8 bits."""
    users = list(node.users)
    if any(user.op == "output" for user in users):
        # The logits stay in float: they cost nothing and carry the calibration.
        return False
    if node.op == "call_module":
        if not isinstance(modules[str(node.target)], _STORED):
            return False
        return not (len(users) == 1 and _is_fused(users[0], modules))
    if node.op == "call_function":
        return node.target in _STORED_FUNCTIONS
    return node.op == "call_method" and node.target in _STORED_METHODS


def _is_fused(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    return node.op == "call_module" and isinstance(modules[str(node.target)], _FUSED)


def _replace(graph: fx.GraphModule, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    holder: Any = graph.get_submodule(parent)
    setattr(holder, own, module)
