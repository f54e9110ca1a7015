"""Counted cost equals the published figures and leaves the model alone."""

import timm
import torch
from torch import nn

from agridistill.models import complexity


def test_mobilenet_has_the_published_cost():
    cost = complexity(timm.create_model("mobilenetv3_large_100", pretrained=False, num_classes=10), image_size=224)
    assert cost.parameters == 4_214_842
    assert round(cost.macs / 1e9, 4) == 0.2153


def test_swin_large_on_the_meta_device_has_the_published_cost():
    with torch.device("meta"):
        model = timm.create_model("swin_large_patch4_window7_224", pretrained=False, num_classes=10)
    cost = complexity(model, image_size=224)
    assert round(cost.parameters / 1e6, 1) == 195.0
    assert round(cost.macs / 1e9, 2) == 34.47


def test_attention_products_are_counted_fused_or_not():
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=32, depth=1, num_classes=2)
    counts = []
    for fused in (True, False):
        model.blocks[0].attn.fused_attn = fused
        counts.append(complexity(model, 32).macs)
    tokens, width = 5, 192
    patches = 4 * 16 * 16 * 3 * width
    linear = tokens * width * (3 * width + width + 2 * 4 * width)
    attention = 2 * tokens * tokens * width
    assert counts == [patches + linear + attention + width * 2] * 2


def test_the_statistics_of_batch_norm_stay_as_they_were():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    complexity(model, 8)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_nothing_is_kept_for_gradients():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    outputs = []
    model.register_forward_hook(lambda module, args, output: outputs.append(output))
    complexity(model, 8)
    assert not outputs[0].requires_grad
