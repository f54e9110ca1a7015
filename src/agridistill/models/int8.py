"""Converts a network so that it computes like its int8 export: folds batch norm and rounds where the export rounds.

torch.fx traces the network as a graph of convolutions, activations, sums and products. int8 engines fuse a convolution
with the ReLU after it, and store every other result in 8 bits.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from timm.layers._fx import is_notrace_module
from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from agridistill.errors import ModelError
from agridistill.manifest import Preprocessing
from agridistill.models.rounding import (
    ActivationRounding,
    GlobalMean,
    PhotoLevels,
    Ranges,
    RoundedConv2d,
    RoundedLinear,
    UnitClamp,
    bias_of,
)

Kind = TypeVar("Kind", bound=nn.Module)


_FUSED = (nn.ReLU, nn.ReLU6, UnitClamp)
_STORED = (nn.Conv2d, nn.Linear, *_FUSED, nn.Hardswish, nn.Hardsigmoid, nn.SiLU, nn.Sigmoid, GlobalMean)
_STORED_FUNCTIONS = (operator.add, operator.mul, torch.add, torch.mul, "mean")
# These only select or move values, so their results have the same levels as their input.
_MOVES = (PhotoLevels, nn.Identity, nn.Dropout, nn.Flatten, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_MOVING_FUNCTIONS = (torch.flatten, "flatten", "view", "reshape", "contiguous")

# Activations that allow cross-layer equalisation, because f(s x) = s f(x) for s > 0; hard-swish and ReLU6 do not.
_HOMOGENEOUS = (nn.ReLU, nn.Identity)
_EQUALISATION_ROUNDS = 20
# Channels whose weights are smaller than this share of the largest are not scaled, because their bias would grow too.
_DEAD = 1e-3


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        leaves = (nn.Conv2d, nn.Linear, BatchNormAct2d, SelectAdaptivePool2d)
        return isinstance(m, leaves) or is_notrace_module(type(m)) or super().is_leaf_module(m, module_qualified_name)


def folded(network: nn.Module) -> fx.GraphModule:
    """Returns a copy of the network in which each batch norm is folded into the convolution before it, for inference.

    A batch norm that does not follow a convolution stays. Raises a ModelError if torch.fx cannot trace the network.
    """
    model = copy.deepcopy(network).eval()
    try:
        graph = fx.GraphModule(model, _Tracer().trace(model))
    except Exception as error:  # torch.fx does not document what data-dependent control flow raises
        got = f"{type(network).__name__} ({error})"
        raise ModelError("a convolutional network that torch.fx can trace", got, "export it in fp32") from None
    graph.meta["feature_info"] = getattr(network, "feature_info", None)  # for `with_attention`
    for node, norm in _calls(graph, nn.BatchNorm2d):
        conv = _conv_before(graph, node)
        if conv is None:
            continue
        (source,) = node.all_input_nodes
        graph.set_submodule(str(source.target), fuse_conv_bn_eval(conv, norm))
        activation = norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity()
        if isinstance(activation, nn.Identity):
            node.replace_all_uses_with(source)
            graph.graph.erase_node(node)
        else:
            graph.set_submodule(str(node.target), activation)
    for node, pool in _calls(graph, SelectAdaptivePool2d):
        if pool.pool_type in ("avg", "fast", "fastavg"):
            graph.set_submodule(str(node.target), GlobalMean(keepdim=isinstance(pool.flatten, nn.Identity)))
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph


def quantised(network: nn.Module, preprocessing: Preprocessing, *, equalised: bool = True) -> fx.GraphModule:
    """Returns a copy of a convolutional classifier that computes like its int8 export: weights and activations rounded.

    Batch norm is folded into the convolutions. `equalised` applies `equalise` before rounding. Call `calibrate` on the
    copy before its first use. It takes normalised photos `(B, 3, H, W)` and returns logits `(B, K)`.

    Raises:
        ModelError: the network has operators that int8 does not support (Swin, for example).
    """
    graph, name = folded(network), type(network).__name__
    _require_supported(graph, name)
    if equalised:
        equalise(graph)
    _fold_hard_sigmoids(graph)
    _take_pixels(graph, preprocessing, name)
    for module in graph.modules():
        # Change the class of the copied layers in place, which keeps their weights, options and names.
        if isinstance(module, nn.Conv2d):
            if type(module) is not nn.Conv2d or module.padding_mode != "zeros":
                expected = "a network with only plain, zero-padded convolutions, for int8"
                raise ModelError(expected, f"{type(module).__name__} in {name}", "export it in fp32")
            module.__class__ = RoundedConv2d
        elif isinstance(module, nn.Linear):
            module.__class__ = RoundedLinear
    _round_activations(graph)
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph


@torch.no_grad()
def calibrate(network: nn.Module, batches: Iterable[Tensor], *, ranges: Ranges = "least_error") -> None:
    """Chooses the range of each activation that is rounded to 8 bits, by running photos through a `quantised` network.

    Activations that already have a range keep it. Each batch holds normalised photos `(B, 3, H, W)` that represent the
    data. `ranges` is how a range is chosen; see `ActivationRounding.calibrate`.
    """
    roundings = [module for module in network.modules() if isinstance(module, ActivationRounding)]
    roundings = [rounding for rounding in roundings if not rounding.is_calibrated]
    network.eval()
    for rounding in roundings:
        rounding.observe()
    for batch in batches:
        network(batch)
    for rounding in roundings:
        rounding.calibrate(ranges)


@torch.no_grad()
def with_rounded_logits(network: nn.Module, batches: Iterable[Tensor]) -> fx.GraphModule:
    """Returns a copy of a calibrated network that rounds its logits as well, for engines without float operators.

    The linear classifier becomes a 1x1 convolution, because all engines compute convolutions bit-identically, but not
    linear layers with a scale for each output. The range of the rounded logits covers all those of the `batches`.
    Raises a ModelError if the network does not end with a linear classifier.
    """
    if not isinstance(network, fx.GraphModule):
        raise ModelError("a network from `quantised`", type(network).__name__, "call `quantised` first")
    graph = copy.deepcopy(network)
    (last,) = graph.graph.output_node().all_input_nodes
    linear = _module(graph, last)
    if not isinstance(linear, RoundedLinear):
        raise ModelError("a network that ends with a linear classifier", str(last.target), "export it without --micro")
    conv = RoundedConv2d(linear.in_features, linear.out_features, 1)
    conv.weight = nn.Parameter(linear.weight[:, :, None, None])
    conv.bias = nn.Parameter(bias_of(linear))
    one_position = nn.Unflatten(1, (linear.in_features, 1, 1))
    graph.set_submodule(str(last.target), nn.Sequential(one_position, conv, ActivationRounding(), nn.Flatten()))
    graph.recompile()
    # Do not clip logits, because the largest one determines the answer.
    calibrate(graph, batches, ranges="min_max")
    return graph


@torch.no_grad()
def equalise(graph: fx.GraphModule) -> int:
    """Scales the channels between consecutive convolutions so that the weights of both have the same range.

    The network, from `folded`, is changed in place. It computes the same outputs, but rounding its activations with one
    scale for all channels loses less. Returns the number of pairs of consecutive convolutions.

    Source: Nagel et al. 2019, arXiv 1906.04721, section 4.1, equation 11.
    """
    pairs = list(_pairs(graph))
    # A convolution may be in two pairs, so the ranges converge only after some rounds.
    for first, second in _EQUALISATION_ROUNDS * pairs:
        # The first axis of `weight` is the channel between the two convolutions.
        weight = second.weight if second.groups > 1 else second.weight.transpose(0, 1)
        outgoing, incoming = first.weight.abs().flatten(1).amax(1), weight.abs().flatten(1).amax(1)
        usable = (outgoing > _DEAD * outgoing.max()) & (incoming > _DEAD * incoming.max())
        scale = torch.where(usable, (outgoing / incoming.clamp_min(1e-30)).sqrt(), 1.0)
        first.weight.div_(scale.view(-1, 1, 1, 1))
        if first.bias is not None:
            first.bias.div_(scale)
        weight.mul_(scale.view(-1, 1, 1, 1))
    return len(pairs)


def _pairs(graph: fx.GraphModule) -> Iterator[tuple[nn.Conv2d, nn.Conv2d]]:
    for node, first in _calls(graph, nn.Conv2d):
        follower = _only_user(node)
        while follower is not None and isinstance(_module(graph, follower), _HOMOGENEOUS):
            follower = _only_user(follower)
        second = _module(graph, follower) if follower is not None else None
        if isinstance(second, nn.Conv2d) and second.groups in (1, second.out_channels):
            yield first, second


def _require_supported(graph: fx.GraphModule, name: str) -> None:
    """Raises a ModelError if the network has operators that int8 engines would compute in float, or not at all."""
    for node in graph.graph.nodes:
        module = _module(graph, node)
        fits = (
            isinstance(module, (*_STORED, *_MOVES))
            or node.op in ("placeholder", "output")
            or (node.op != "call_module" and node.target in (*_STORED_FUNCTIONS, *_MOVING_FUNCTIONS))
        )
        if not fits:
            what = node.name if module is None else type(module).__name__
            raise ModelError(
                "a network with only operators that int8 supports", f"{what} in {name}", "export it in fp32"
            )


@torch.no_grad()
def _fold_hard_sigmoids(graph: fx.GraphModule) -> None:
    """Folds the x / 6 + 1 / 2 of a hard sigmoid into the convolution before it: int8 formats have no hard sigmoid."""
    for node, _ in _calls(graph, nn.Hardsigmoid):
        conv = _conv_before(graph, node)
        if conv is not None:
            conv.weight /= 6
            conv.bias = nn.Parameter(bias_of(conv) / 6 + 0.5)
            graph.set_submodule(str(node.target), UnitClamp())


def _take_pixels(graph: fx.GraphModule, preprocessing: Preprocessing, name: str) -> None:
    """Folds mean and standard deviation into the first convolution, so that it takes unchanged pixels."""
    (photo,) = (node for node in graph.graph.nodes if node.op == "placeholder")
    users = [_module(graph, node) for node in photo.users]
    if len(users) != 1 or not isinstance(users[0], nn.Conv2d) or users[0].groups != 1:
        first = ", ".join("an operator" if user is None else type(user).__name__ for user in users)
        raise ModelError(
            "a network that begins with one convolution, for int8", f"{first} in {name}", "export it in fp32"
        )
    levels = PhotoLevels(preprocessing)
    levels.fold_into(users[0])
    graph.add_submodule("photo_levels", levels)
    _insert_after(graph, photo, "photo_levels")


def _round_activations(graph: fx.GraphModule) -> None:
    roundings = nn.ModuleDict()
    graph.add_submodule("roundings", roundings)
    for node in list(graph.graph.nodes):
        stored = isinstance(_module(graph, node), _STORED) or (
            node.op in ("call_function", "call_method") and node.target in _STORED_FUNCTIONS
        )
        follower = _only_user(node)
        fused = node.op == "call_module" and follower is not None and isinstance(_module(graph, follower), _FUSED)
        # The logits stay in float: that costs nothing, and the temperature needs precise logits.
        if stored and not fused and not any(user.op == "output" for user in node.users):
            roundings[node.name] = ActivationRounding()
            _insert_after(graph, node, f"roundings.{node.name}")


def _calls(graph: fx.GraphModule, kind: type[Kind]) -> Iterator[tuple[fx.Node, Kind]]:
    for node in list(graph.graph.nodes):
        module = _module(graph, node)
        if isinstance(module, kind):
            yield node, module


def _module(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _conv_before(graph: fx.GraphModule, node: fx.Node) -> nn.Conv2d | None:
    """Returns the convolution before the node; None if there is none, or if another node uses its output, too."""
    (source,) = node.all_input_nodes
    conv = _module(graph, source)
    return conv if isinstance(conv, nn.Conv2d) and len(source.users) == 1 else None


def _insert_after(graph: fx.GraphModule, node: fx.Node, name: str) -> None:
    with graph.graph.inserting_after(node):
        call = graph.graph.call_module(name, (node,))
    # The inserted node belongs to the same module of the network, so it may be the output of its stage.
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call, delete_user_cb=lambda user: user is not call)
