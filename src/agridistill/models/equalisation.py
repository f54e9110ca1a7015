"""Cross-layer equalisation: the same function, with channels of like size, so that one scale suits them all.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv 1906.04721, section
4.1.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn

# Scaling passes these unchanged: f(s x) = s f(x) for s > 0. Hard-swish and ReLU6 are not among them.
_HOMOGENEOUS = (nn.ReLU, nn.Identity)
_ROUNDS = 20
# Channels with hardly any weight beside the largest's stay as they are: to scale them up would scale up their bias.
_DEAD = 1e-3


@torch.no_grad()
def equalise(graph: fx.GraphModule) -> int:
    """Scales the channels between each pair of convolutions so that both have weights of the same range (equation 11).

    Args:
        graph: from `models.quantised.folded`; its weights are changed, its answers are not.

    Returns:
        The number of pairs.
    """
    pairs = list(_pairs(graph))
    # A convolution may stand in two pairs: the ranges settle after some rounds.
    for _ in range(_ROUNDS):
        for first, second in pairs:
            _equalise_pair(first, second)
    return len(pairs)


def _equalise_pair(first: nn.Conv2d, second: nn.Conv2d) -> None:
    outgoing = first.weight.abs().flatten(1).amax(1)
    incoming = _by_input_channel(second).abs().flatten(1).amax(1)
    usable = (outgoing > _DEAD * outgoing.max()) & (incoming > _DEAD * incoming.max())
    scale = torch.where(usable, (outgoing / incoming.clamp_min(1e-30)).sqrt(), torch.ones_like(outgoing))
    first.weight.div_(scale.view(-1, 1, 1, 1))
    if first.bias is not None:
        first.bias.div_(scale)
    _by_input_channel(second).mul_(scale.view(-1, 1, 1, 1))


def _by_input_channel(conv: nn.Conv2d) -> Tensor:
    """A view of the weight whose first axis is the input channel."""
    return conv.weight if conv.groups > 1 else conv.weight.transpose(0, 1)


def _pairs(graph: fx.GraphModule) -> Iterator[tuple[nn.Conv2d, nn.Conv2d]]:
    modules = dict(graph.named_modules())
    for node in graph.graph.nodes:
        first = _module(node, modules)
        if not isinstance(first, nn.Conv2d):
            continue
        follower = _only_user(node)
        while follower is not None and isinstance(_module(follower, modules), _HOMOGENEOUS):
            follower = _only_user(follower)
        second = _module(follower, modules) if follower is not None else None
        if isinstance(second, nn.Conv2d) and (second.groups == 1 or second.groups == second.out_channels):
            yield first, second


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _module(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    return modules.get(str(node.target)) if node.op == "call_module" else None
