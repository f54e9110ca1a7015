"""The first weights of a MobileNetV3-Large: an EfficientNet-Lite0, pruned block by block with least squares.

Both networks are stages of inverted residuals with the same widths up to the fifth stage; the student's blocks are
narrower inside, and its minimal form has only 3x3 kernels. Each block of the student takes over a block of the
teacher: of the hidden channels those that explain the block's output best (chosen one after the other, as in
orthogonal matching pursuit), depthwise kernels of the student's size that reproduce the teacher's on these photos, and
a projection solved by least squares on the student's own input, so that a block also corrects the errors of those
before it (as in "Channel pruning for accelerating very deep networks", He et al. 2017, arXiv 1707.06168). It takes a
minute or two; a training from random weights needs hours to get there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

# For each stage of the student, for each block: the teacher's block whose hidden channels it takes over, and the
# teacher's block in the same stage whose output it aims at. Two blocks of one source take different channels of it.
_BLOCKS = {
    1: ((0, 0), (1, 1)),
    2: ((0, 0), (1, 1), (1, 1)),
    3: ((0, 0), (1, 1), (2, 2), (2, 2)),
    4: ((0, 0), (1, 2)),
    5: ((0, 0), (1, 2), (2, 3)),
}
# Hard-swish of a doubled input is close to twice the ReLU.
_HARD_SWISH_SCALE = 2.0
# More positions than this change no solution that has at most 1,152 unknowns.
_ENOUGH_ROWS = 65_537


@torch.no_grad()
def prune(student: nn.Module, teacher: nn.Module, views: Tensor) -> tuple[Tensor, Tensor]:
    """Sets all weights of `student`, and its batch norms' statistics, so that it computes what `teacher` computes.

    Returns the matrix `(192, 160)` and the shift `(192,)` from the student's sixth stage to the teacher's.

    Args:
        student: timm's `mobilenetv3_large_100` or its minimal form, with the teacher's classes.
        teacher: timm's `tf_efficientnet_lite0` with weights, or its form with even padding.
        views: normalised photos `(B, 3, S, S)`; about 1,000 are enough.
    """
    student.eval()
    teacher.eval()
    maps, x = [], teacher.bn1(teacher.conv_stem(views))
    for stage in teacher.blocks:
        outputs = []
        for block in stage:
            x = block(x)
            outputs.append(x)
        maps.append(outputs)
    pooled = teacher.forward_head(teacher.bn2(teacher.conv_head(x)), pre_logits=True)
    x = _prune_stem(student, teacher, views, maps[0][0])
    into: Tensor | None = None
    for k, rows in _BLOCKS.items():
        # The sixth stage is narrower than the teacher's: it holds the main components of the teacher's map.
        width = student.blocks[k][0].conv_pwl.out_channels
        project = _main_components(maps[k][-1 if k < 5 else 3], width)
        used: set[int] = set()
        for i, (source, aim) in enumerate(rows):
            if i and source != rows[i - 1][0]:
                used = set()
            wanted = maps[k][aim] if project is None else torch.einsum("bchw,kc->bkhw", maps[k][aim], project)
            x = _prune_block(student.blocks[k][i], teacher.blocks[k][source], x, wanted, into, used)
            into = project
    _prune_head(student, teacher, x, into, pooled)
    return _least_squares(_rows(x), _rows(maps[5][-1]), ridge=1e-3)


def _prune_stem(student: nn.Module, teacher: nn.Module, views: Tensor, wanted: Tensor) -> Tensor:
    own, source = student.blocks[0][0], teacher.blocks[0][0]
    raw = teacher.conv_stem(views)
    a, b = _affine(teacher.bn1)
    filtered = source.conv_dw(teacher.bn1(raw))
    pick = _choose(_rows(source.bn1(filtered)), _rows(wanted), student.conv_stem.out_channels)
    student.conv_stem.weight.copy_(teacher.conv_stem.weight[pick])
    scale = _scale(student.bn1.act)
    _set_norm(student.bn1, student.conv_stem(views), a[pick] * scale, b[pick] * scale)
    x = student.bn1(student.conv_stem(views))
    kernels, shift = _kernels(own.conv_dw, x, filtered[:, pick])
    own.conv_dw.weight.copy_(kernels)
    a, b = (each[pick] for each in _affine(source.bn1))
    _set_norm(own.bn1, own.conv_dw(x), a, b + a * shift)
    _project(own.conv_pw, own.bn2, own.bn1(own.conv_dw(x)), wanted - x)
    return own(x)


def _prune_block(
    own: nn.Module, source: nn.Module, x: Tensor, wanted: Tensor, into: Tensor | None, used: set[int]
) -> Tensor:
    """Sets one inverted residual; adds the teacher's channels that it takes to `used`, and returns its output."""
    scale1, scale2 = _scale(own.bn1.act), _scale(own.bn2.act)
    weight = source.conv_pw.weight
    weight = weight if into is None else torch.einsum("oihw,ki->okhw", weight, into)
    raw = F.conv2d(x, weight)
    a, b = _affine(source.bn1)
    light = a.view(-1, 1, 1) * raw + b.view(-1, 1, 1)
    # What the teacher's depthwise layer gives for this input, and kernels that give the same after the own activation.
    filtered = source.conv_dw(light.clamp(0, 6))
    activated = own.bn1.act(light * scale1)
    kernels, shift = _kernels(own.conv_dw, activated, filtered)
    found = _depthwise(own.conv_dw, activated, kernels)
    a2, b2 = _affine(source.bn2)
    b2 = b2 + a2 * shift
    hidden = own.bn2.act((a2.view(-1, 1, 1) * found + b2.view(-1, 1, 1)) * scale2)
    target = wanted - x if own.has_skip else wanted
    free = torch.tensor([channel for channel in range(hidden.shape[1]) if channel not in used])
    pick = free[_choose(_rows(hidden)[:, free], _rows(target), own.conv_pw.out_channels)]
    used |= set(pick.tolist())
    own.conv_pw.weight.copy_(weight[pick])
    _set_norm(own.bn1, raw[:, pick], a[pick] * scale1, b[pick] * scale1)
    own.conv_dw.weight.copy_(kernels[pick])
    _set_norm(own.bn2, found[:, pick], a2[pick] * scale2, b2[pick] * scale2)
    if hasattr(own.se, "conv_expand"):
        # Gates that are nearly constant and not saturated: the teacher has none.
        own.se.conv_expand.weight.mul_(0.1)
        own.se.conv_expand.bias.fill_(2.0)
    _project(own.conv_pwl, own.bn3, own.se(own.bn2(own.conv_dw(own.bn1(own.conv_pw(x))))), target)
    return own(x)


def _prune_head(student: nn.Module, teacher: nn.Module, x: Tensor, into: Tensor | None, pooled: Tensor) -> None:
    """Sets the last layers: MobileNetV3 takes the mean over the map before its last convolution, the teacher after."""
    own, source = student.blocks[6][0], teacher.blocks[6][0]
    scale = _scale(own.bn1.act)
    weight = torch.einsum("oihw,ki->okhw", source.conv_pw.weight, into)
    raw = F.conv2d(x, weight)
    a, b = _affine(source.bn1)
    hidden = own.bn1.act((a.view(-1, 1, 1) * raw + b.view(-1, 1, 1)) * scale).mean((2, 3))
    # The input for which the own activation returns the teacher's features, none of which is negative.
    inverse = (-3 + (9 + 24 * pooled).sqrt()) / 2 if isinstance(own.bn1.act, nn.Hardswish) else pooled
    pick = _choose(hidden, inverse, own.conv.out_channels)
    own.conv.weight.copy_(weight[pick])
    _set_norm(own.bn1, raw[:, pick], a[pick] * scale, b[pick] * scale)
    matrix, shift = _least_squares(own(x).mean((2, 3)), inverse, ridge=3e-2)
    student.conv_head.weight.copy_(matrix[..., None, None])
    student.conv_head.bias.copy_(shift)
    student.get_classifier().load_state_dict(teacher.get_classifier().state_dict())


def _project(conv: nn.Module, norm: nn.Module, hidden: Tensor, wanted: Tensor) -> None:
    """Sets a 1x1 convolution and its batch norm so that they map `hidden` to `wanted`, by least squares."""
    matrix, shift = _least_squares(_rows(hidden), _rows(wanted), ridge=1e-3)
    conv.weight.copy_(matrix[..., None, None])
    _set_norm(norm, conv(hidden), torch.ones_like(shift), shift)


def _main_components(wanted: Tensor, count: int) -> Tensor | None:
    """The `count` main directions of a map's channels, `(count, C)`; None if it has no more channels than that."""
    if wanted.shape[1] <= count:
        return None
    rows = _rows(wanted)
    rows = rows - rows.mean(0)
    _, vectors = torch.linalg.eigh((rows.T @ rows).double())
    return vectors[:, -count:].T.float()


def _rows(maps: Tensor) -> Tensor:
    """`(B, C, H, W)` to `(B * H * W, C)`, or every n-th of these rows if they are many."""
    rows = maps.permute(0, 2, 3, 1).flatten(0, 2)
    return rows[:: max(1, len(rows) // _ENOUGH_ROWS)]


def _scale(activation: nn.Module) -> float:
    return _HARD_SWISH_SCALE if isinstance(activation, nn.Hardswish) else 1.0


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Factor and summand of each channel of a batch norm in evaluation."""
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    return factor, norm.bias - factor * norm.running_mean


def _set_norm(norm: nn.Module, raw: Tensor, factor: Tensor, summand: Tensor) -> None:
    """Sets a batch norm to `factor * raw + summand`, with the statistics of `raw`."""
    mean, var = raw.mean((0, 2, 3)), raw.var((0, 2, 3), unbiased=False)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(var)
    norm.weight.copy_(factor * (var + norm.eps).sqrt())
    norm.bias.copy_(summand + factor * mean)


def _choose(hidden: Tensor, wanted: Tensor, count: int) -> Tensor:
    """The `count` columns of `hidden`, `(N, C)`, that explain `wanted`, `(N, O)`, best: each adds most to the rest."""
    if count >= hidden.shape[1]:
        return torch.arange(hidden.shape[1])
    hidden, wanted = hidden - hidden.mean(0), wanted - wanted.mean(0)
    gram, cross = (hidden.T @ hidden).double(), (hidden.T @ wanted).double()
    power = gram.diagonal().mean().item()
    gram.diagonal().add_(1e-4 * power)
    chosen: list[int] = []
    free = torch.ones(len(gram), dtype=torch.bool)
    for _ in range(count):
        gain = cross.square().sum(1) / gram.diagonal()
        gain[~free | (gram.diagonal() < 1e-6 * power)] = -1
        best = int(gain.argmax())
        chosen.append(best)
        free[best] = False
        row = gram[best].clone()
        share = row / row[best]
        cross -= torch.outer(share, cross[best].clone())
        gram -= torch.outer(share, row)
    return torch.tensor(sorted(chosen))


def _least_squares(hidden: Tensor, wanted: Tensor, *, ridge: float) -> tuple[Tensor, Tensor]:
    """The matrix `(O, C)` and shift `(O,)` that map `hidden`, `(N, C)`, to `wanted`, `(N, O)`."""
    mean, wanted_mean = hidden.mean(0), wanted.mean(0)
    h, y = (hidden - mean).double(), (wanted - wanted_mean).double()
    gram = h.T @ h
    gram.diagonal().add_(ridge * gram.diagonal().mean())
    matrix = torch.linalg.solve(gram, h.T @ y).T.float()
    return matrix, wanted_mean - matrix @ mean


def _padded(conv: nn.Module, x: Tensor) -> Tensor:
    """`x` with the border that a depthwise layer adds, equal on both sides or one more on the right (TensorFlow's)."""
    size, stride = conv.kernel_size[0], conv.stride[0]
    if not type(conv).__name__.endswith("Same"):
        return F.pad(x, [conv.padding[0]] * 4)
    total = max((-(-x.shape[-1] // stride) - 1) * stride + size - x.shape[-1], 0)
    return F.pad(x, [total // 2, total - total // 2] * 2)


def _depthwise(conv: nn.Module, x: Tensor, kernels: Tensor) -> Tensor:
    return F.conv2d(_padded(conv, x), kernels, stride=conv.stride, groups=len(kernels))


def _kernels(conv: nn.Module, x: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Depthwise kernels `(C, 1, K, K)` for `conv`, with shifts `(C,)`, that map `x` to `wanted` by least squares."""
    size, photos = conv.kernel_size[0], max(1, _ENOUGH_ROWS // wanted[0, 0].numel())
    x, wanted, found = _padded(conv, x[:photos]), wanted[:photos], []
    for some, goal in zip(x.split(32, dim=1), wanted.split(32, dim=1), strict=True):
        patches = F.unfold(some, size, stride=conv.stride)
        patches = patches.view(len(x), some.shape[1], size * size, -1).permute(1, 0, 3, 2).flatten(1, 2)
        y = goal.permute(1, 0, 2, 3).flatten(1)[..., None]
        mean, goal_mean = patches.mean(1, keepdim=True), y.mean(1, keepdim=True)
        h = patches - mean
        gram = h.transpose(1, 2) @ h
        ridge = 1e-4 * gram.diagonal(dim1=1, dim2=2).mean(1).view(-1, 1, 1) + 1e-8
        kernel = torch.linalg.solve(gram + ridge * torch.eye(size * size), h.transpose(1, 2) @ (y - goal_mean))
        found.append(torch.cat([kernel, goal_mean - mean @ kernel], 1)[..., 0])
    rows = torch.cat(found)
    return rows[:, :-1].reshape(-1, 1, size, size), rows[:, -1]
