"""Weights that another library has named, in timm's names: one table of rules for each naming."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Rule:
    """How the beginning of a key is named in timm.

    Attributes:
        pattern: a regular expression for the beginning of the key.
        timm: what stands there in timm's name, with `\\1` for the pattern's group, or `{block}` for timm's name of the
            block, such as `blocks.3.0`, that the group counts through all stages.
        inside: beginnings of the rest of the key, and their names in timm; a rest that none of them fits stays.
            `name[0]` is the first of several tensors that timm holds as one, stacked along its first axis.
    """

    pattern: str
    timm: str
    inside: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Naming:
    """The names that one library gives to the tensors of a model.

    Attributes:
        title: of the library and its models.
        mark: a regular expression for a key that only this naming has.
        rules: the first one that fits a key renames it.
        first_block: the number of the first block.
        batch_norm_eps: with which the library computes batch norm; None where the models have none.
    """

    title: str
    mark: str
    rules: tuple[Rule, ...]
    first_block: int = 0
    batch_norm_eps: float | None = None


_LITE = Naming(
    "efficientnet-lite",
    r"_conv_stem\.weight",
    (
        Rule(r"_conv_stem\.", "conv_stem."),
        Rule(r"_bn0\.", "bn1."),
        # The first block alone has no expansion, so its batch norms count from one earlier.
        Rule(
            r"_blocks\.(0)\.",
            "{block}.",
            {
                "_depthwise_conv.": "conv_dw.",
                "_bn1.": "bn1.",
                "_project_conv.": "conv_pw.",
                "_bn2.": "bn2.",
            },
        ),
        Rule(
            r"_blocks\.(\d+)\.",
            "{block}.",
            {
                "_expand_conv.": "conv_pw.",
                "_bn0.": "bn1.",
                "_depthwise_conv.": "conv_dw.",
                "_bn1.": "bn2.",
                "_project_conv.": "conv_pwl.",
                "_bn2.": "bn3.",
            },
        ),
        Rule(r"_conv_head\.", "conv_head."),
        Rule(r"_bn1\.", "bn2."),
        Rule(r"_fc\.", "classifier."),
    ),
    batch_norm_eps=1e-3,
)

_TORCHVISION_MOBILENET = Naming(
    "torchvision",
    r"features\.1\.block\.0\.0\.weight",
    (
        Rule(r"features\.0\.0\.", "conv_stem."),
        Rule(r"features\.0\.1\.", "bn1."),
        # The first block has no expansion.
        Rule(
            r"features\.(1)\.block\.",
            "{block}.",
            {
                "0.0.": "conv_dw.",
                "0.1.": "bn1.",
                "1.fc1.": "se.conv_reduce.",
                "1.fc2.": "se.conv_expand.",
                "1.0.": "conv_pw.",
                "1.1.": "bn2.",
                "2.0.": "conv_pw.",
                "2.1.": "bn2.",
            },
        ),
        # Squeeze-excite is part 2 where a block has it, and the projection part 3; otherwise the projection is part 2.
        Rule(
            r"features\.(\d+)\.block\.",
            "{block}.",
            {
                "0.0.": "conv_pw.",
                "0.1.": "bn1.",
                "1.0.": "conv_dw.",
                "1.1.": "bn2.",
                "2.fc1.": "se.conv_reduce.",
                "2.fc2.": "se.conv_expand.",
                "2.0.": "conv_pwl.",
                "2.1.": "bn3.",
                "3.0.": "conv_pwl.",
                "3.1.": "bn3.",
            },
        ),
        # The last convolution stands where a block would.
        Rule(r"features\.(\d+)\.", "{block}.", {"0.": "conv.", "1.": "bn1."}),
        Rule(r"classifier\.0\.", "conv_head."),
        Rule(r"classifier\.3\.", "classifier."),
    ),
    first_block=1,
    batch_norm_eps=1e-3,
)

_TORCHVISION_SWIN_BLOCK = {"mlp.0.": "mlp.fc1.", "mlp.3.": "mlp.fc2."}

_TORCHVISION_SWIN = Naming(
    "torchvision",
    r"features\.1\.0\.attn\.qkv\.weight",
    (
        Rule(r"features\.0\.0\.", "patch_embed.proj."),
        Rule(r"features\.0\.2\.", "patch_embed.norm."),
        Rule(r"features\.1\.(\d+)\.", r"layers.0.blocks.\1.", _TORCHVISION_SWIN_BLOCK),
        Rule(r"features\.2\.", "layers.1.downsample."),
        Rule(r"features\.3\.(\d+)\.", r"layers.1.blocks.\1.", _TORCHVISION_SWIN_BLOCK),
        Rule(r"features\.4\.", "layers.2.downsample."),
        Rule(r"features\.5\.(\d+)\.", r"layers.2.blocks.\1.", _TORCHVISION_SWIN_BLOCK),
        Rule(r"features\.6\.", "layers.3.downsample."),
        Rule(r"features\.7\.(\d+)\.", r"layers.3.blocks.\1.", _TORCHVISION_SWIN_BLOCK),
        Rule(r"norm\.", "norm."),
        Rule(r"head\.", "head.fc."),
    ),
)

# A stage's downsampling ends it here; in timm it begins the next stage.
_DOWNSAMPLE_AT_THE_END = tuple(
    Rule(rf"(?:swin\.encoder\.|encoder\.|)layers\.{stage}\.downsample\.", f"layers.{stage + 1}.downsample.")
    for stage in range(3)
)

_HUGGING_FACE_SWIN = Naming(
    "Hugging Face",
    r"(swin\.)?encoder\.layers\.0\.blocks\.0\.attention\.(self\.query|q_proj)\.weight",
    (
        Rule(r"(?:swin\.)?embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        Rule(r"(?:swin\.)?embeddings\.norm\.", "patch_embed.norm."),
        *_DOWNSAMPLE_AT_THE_END,
        Rule(
            r"(?:swin\.)?encoder\.layers\.(\d+\.blocks\.\d+)\.",
            r"layers.\1.",
            {
                "layernorm_before.": "norm1.",
                "layernorm_after.": "norm2.",
                # In files.
                "attention.self.query.": "attn.qkv[0].",
                "attention.self.key.": "attn.qkv[1].",
                "attention.self.value.": "attn.qkv[2].",
                "attention.self.relative_position_bias_table": "attn.relative_position_bias_table",
                "attention.output.dense.": "attn.proj.",
                "intermediate.dense.": "mlp.fc1.",
                "output.dense.": "mlp.fc2.",
                # In the `state_dict()` of transformers 5.
                "attention.q_proj.": "attn.qkv[0].",
                "attention.k_proj.": "attn.qkv[1].",
                "attention.v_proj.": "attn.qkv[2].",
                "attention.relative_position_bias.": "attn.",
                "attention.o_proj.": "attn.proj.",
            },
        ),
        Rule(r"(?:swin\.)?layernorm\.", "norm."),
        Rule(r"classifier\.", "head.fc."),
    ),
)

_MICROSOFT_SWIN = Naming(
    "the authors' repository",
    r"layers\.0\.downsample\.reduction\.weight",
    (
        *_DOWNSAMPLE_AT_THE_END,
        Rule(r"head\.", "head.fc."),
        Rule(r"", ""),
    ),
)

NAMINGS = (_LITE, _TORCHVISION_MOBILENET, _TORCHVISION_SWIN, _HUGGING_FACE_SWIN, _MICROSOFT_SWIN)

KNOWN_NAMES = (
    "timm's names, torchvision's (MobileNetV3, Swin), Hugging Face's (Swin), Microsoft's (Swin) or efficientnet-lite's"
)


@dataclass(frozen=True)
class NamedWeights:
    """Tensors in timm's names.

    Attributes:
        tensors: by timm's name; what no rule fits keeps its own.
        original: the names in the file of each of them.
    """

    tensors: dict[str, Tensor]
    original: dict[str, str]


def in_timms_names(tensors: Mapping[str, Tensor], model: nn.Module) -> NamedWeights:
    """Renames the tensors of a file, where one of `NAMINGS` is recognised.

    Running variances are shifted where the library's batch norm has another epsilon than the model's, so that outputs
    are equal.

    Args:
        tensors: of the file.
        model: timm's model of the same architecture.
    """
    naming = _naming_of(tensors, model.state_dict())
    if naming is None:
        return NamedWeights(dict(tensors), {key: key for key in tensors})
    blocks = _blocks(model)
    parts: dict[str, dict[int, Tensor]] = {}
    original: dict[str, str] = {}
    for key, value in tensors.items():
        name, part = _split_part(_renamed(key, naming, blocks))
        if part in parts.get(name, {}):
            # Two keys of one tensor: left over, so that it is refused.
            name = f"{name} again"
        parts.setdefault(name, {})[part] = value
        original.setdefault(name, key)
    named = {name: _stacked(pieces) for name, pieces in parts.items()}
    if naming.batch_norm_eps is not None:
        _shift_batch_norm(named, model, naming.batch_norm_eps)
    return NamedWeights(named, original)


def _naming_of(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Naming | None:
    for naming in NAMINGS:
        if any(re.fullmatch(naming.mark, key) and key not in own for key in tensors):
            return naming
    return None


def _blocks(model: nn.Module) -> list[str]:
    """timm's names of the blocks of an EfficientNet or MobileNet, in the order in which they compute."""
    found = {match.group(0) for key in model.state_dict() if (match := re.match(r"blocks\.\d+\.\d+", key))}
    return sorted(found, key=lambda name: tuple(int(number) for number in name.split(".")[1:]))


def _renamed(key: str, naming: Naming, blocks: Sequence[str]) -> str:
    for rule in naming.rules:
        match = re.match(rule.pattern, key)
        if match is None:
            continue
        start = match.expand(rule.timm)
        if "{block}" in start:
            number = int(match.group(1)) - naming.first_block
            if not 0 <= number < len(blocks):
                return key
            start = start.replace("{block}", blocks[number])
        rest = key[match.end() :]
        for theirs, timms in rule.inside.items():
            if rest.startswith(theirs):
                rest = timms + rest.removeprefix(theirs)
                break
        return start + rest
    return key


def _split_part(name: str) -> tuple[str, int]:
    match = re.fullmatch(r"(.*)\[(\d)\](.*)", name)
    return (match.group(1) + match.group(3), int(match.group(2))) if match else (name, 0)


def _stacked(pieces: Mapping[int, Tensor]) -> Tensor:
    ordered = [pieces[part] for part in sorted(pieces)]
    # Pieces that cannot be stacked are no tensor of the model: the first one alone does not fit either.
    stackable = ordered[0].ndim > 0 and len({piece.shape[1:] for piece in ordered}) == 1
    return torch.cat(ordered) if len(ordered) > 1 and stackable else ordered[0]


def _shift_batch_norm(named: dict[str, Tensor], model: nn.Module, theirs: float) -> None:
    """Batch norm divides by sqrt(running_var + eps): the difference of two epsilons goes into running_var.

    torchvision's MobileNetV3 has 1e-3, timm's 1e-5. Training goes on with timm's; the running variance follows.
    """
    for name, module in model.named_modules():
        key = f"{name}.running_var"
        if isinstance(module, nn.BatchNorm2d) and key in named and theirs != module.eps:
            named[key] = named[key].float() + (theirs - module.eps)
