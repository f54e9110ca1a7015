"""Attention maps: the right axes, the right place, and never stale."""

import copy
import itertools
import math

import numpy as np
import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformerBlock
from torch import nn

from agridistill.errors import ModelError
from agridistill.losses.objective import DistillationObjective, StagePair
from agridistill.models import StageTap
from agridistill.models.taps import feature_attention, window_attention


def make_block(resolution, window=4, shift=2, heads=2, seed=0, **options):
    """A block whose every parameter matters: trained scales, biases and position bias."""
    torch.manual_seed(seed)
    block = SwinTransformerBlock(
        dim=8, input_resolution=resolution, num_heads=heads, window_size=window, shift_size=shift, **options
    ).eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.7)
    return block


def make_swin(**options):
    torch.manual_seed(0)
    settings = {"img_size": 64, "embed_dim": 12, "depths": (2, 2, 2), "num_heads": (1, 2, 4), "window_size": 4}
    return timm.create_model("swin_tiny_patch4_window7_224", pretrained=False, num_classes=3, **settings | options)


def reference_window_attention(block, x):
    """Position by position in float64: who shares a window with whom, and how much of each query a key gets."""
    heads, (win_h, win_w), (shift_h, shift_w) = block.attn.num_heads, block.window_size, block.shift_size
    batch, height, width, _ = x.shape
    padded_h, padded_w = math.ceil(height / win_h) * win_h, math.ceil(width / win_w) * win_w
    result = np.zeros((batch, heads, height, width))
    for image, top, left in itertools.product(range(batch), range(0, padded_h, win_h), range(0, padded_w, win_w)):
        tokens, source, region = {}, {}, {}
        for i, j in itertools.product(range(top, top + win_h), range(left, left + win_w)):
            tokens[i, j] = np.zeros(x.shape[-1])
            if i < height and j < width:
                source[i, j] = ((i + shift_h) % height, (j + shift_w) % width)
                tokens[i, j] = reference_norm(block.norm1, x[image, *source[i, j]].double().numpy())
            region[i, j] = (band(i, padded_h, win_h, shift_h), band(j, padded_w, win_w, shift_w))
        for head, asker in itertools.product(range(heads), source):
            partners = [place for place in tokens if region[place] == region[asker]]
            scores = np.exp([reference_score(block.attn, head, tokens, asker, place) for place in partners])
            for place, share in zip(partners, scores / scores.sum() / len(source), strict=True):
                if place in source:
                    result[image, head, *source[place]] += share
    return result


def band(index, length, window, shift):
    """Rows that the cyclic shift brought round to the end are no neighbours of the rows before them."""
    if shift == 0 or index < length - window:
        return 0
    return 1 if index < length - shift else 2


def reference_norm(norm, vector):
    scaled = (vector - vector.mean()) / np.sqrt(vector.var() + norm.eps)
    return scaled * norm.weight.detach().double().numpy() + norm.bias.detach().double().numpy()


def reference_score(attn, head, tokens, asker, place):
    weight, bias = attn.qkv.weight.detach().double().numpy(), attn.qkv.bias.detach().double().numpy()
    channels, head_dim = weight.shape[1], weight.shape[1] // attn.num_heads
    query_rows = slice(head * head_dim, (head + 1) * head_dim)
    key_rows = slice(channels + head * head_dim, channels + (head + 1) * head_dim)
    query = weight[query_rows] @ tokens[asker] + bias[query_rows]
    key = weight[key_rows] @ tokens[place] + bias[key_rows]
    win_h, win_w = attn.window_size
    row, column = asker[0] - place[0] + win_h - 1, asker[1] - place[1] + win_w - 1
    position_bias = attn.relative_position_bias_table[row * (2 * win_w - 1) + column, head].item()
    return query @ key / math.sqrt(head_dim) + position_bias


def windows_of(maps, window):
    """`(B, heads, H, W)` as the sums over each window, `(B, heads, windows)`."""
    return torch.nn.functional.avg_pool2d(maps, window).flatten(2) * window * window


class TestFeatureAttention:
    def test_equals_the_mean_of_squares_over_channels(self):
        features = np.random.default_rng(0).normal(size=(2, 5, 3, 4))
        expected = np.zeros((2, 3, 4))
        for b, c, i, j in np.ndindex(features.shape):
            expected[b, i, j] += features[b, c, i, j] ** 2 / 5
        np.testing.assert_allclose(feature_attention(torch.from_numpy(features)), expected, rtol=1e-6)

    @pytest.mark.parametrize(
        ("dtype", "value"), [(torch.float16, 300.0), (torch.bfloat16, 1e10), (torch.float16, 1e-6)]
    )
    def test_half_precision_neither_overflows_nor_vanishes(self, dtype, value):
        features = torch.full((1, 4, 2, 2), value, dtype=dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            attention = feature_attention(features)
        assert attention.dtype == torch.float32
        torch.testing.assert_close(attention, torch.full((1, 2, 2), features[0, 0, 0, 0].item() ** 2))


class TestWindowAttention:
    @pytest.mark.parametrize(
        ("resolution", "options"),
        [
            ((8, 8), {"shift": 0}),
            ((8, 8), {"shift": 2}),
            ((8, 12), {"shift": 2}),
            ((8, 12), {"shift": (1, 3)}),
            ((8, 4), {"shift": 2}),
            ((6, 9), {"shift": 0}),
            ((6, 9), {"shift": 2}),
            ((3, 3), {"shift": 2}),
            ((3, 5), {"shift": 2, "always_partition": True}),
            ((8, 8), {"window": (2, 4), "shift": (1, 2)}),
            ((8, 8), {"shift": 2, "heads": 1}),
        ],
    )
    def test_equals_a_position_by_position_reference(self, resolution, options):
        block = make_block(resolution, **options)
        x = torch.randn(2, *resolution, 8)
        with torch.no_grad():
            maps = window_attention(block, x)
        assert maps.dtype == torch.float32
        np.testing.assert_allclose(maps, reference_window_attention(block, x), atol=2e-6)

    @pytest.mark.parametrize("resolution", [(8, 16), (6, 9)])
    def test_follows_a_dynamic_mask(self, resolution):
        block = make_block((12, 12), dynamic_mask=True)
        x = torch.randn(2, *resolution, 8)
        with torch.no_grad():
            maps = window_attention(block, x)
        np.testing.assert_allclose(maps, reference_window_attention(block, x), atol=2e-6)

    @pytest.mark.parametrize("fused", [True, False])
    @pytest.mark.parametrize("shift", [0, 2])
    def test_is_the_attention_that_the_block_itself_used(self, fused, shift):
        # Summed over all queries, a head's output is the sum over keys of received attention times value. With the
        # last projection an identity, the block's real output shows that sum.
        block = make_block((8, 12), shift=shift)
        block.attn.fused_attn = fused
        x = torch.randn(2, 8, 12, 8)
        with torch.no_grad():
            block.attn.proj.weight.copy_(torch.eye(8))
            block.attn.proj.bias.zero_()
            normed = block.norm1(x)
            output = block._attn(normed).sum(dim=(1, 2))
            value = block.attn.qkv(normed)[..., 16:].unflatten(-1, (2, 4))
            received = window_attention(block, x) * 16
        expected = torch.einsum("bhij,bijhd->bhd", received, value).flatten(1)
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("shift", [0, 2])
    def test_gives_each_window_a_mass_of_one(self, shift):
        block = make_block((8, 12), shift=shift)
        with torch.no_grad():
            maps = window_attention(block, torch.randn(2, 8, 12, 8))
        in_windows = windows_of(torch.roll(maps, (-shift, -shift), dims=(2, 3)), 4)
        torch.testing.assert_close(in_windows, torch.ones(2, 2, 6))

    def test_a_loud_key_shows_up_at_its_own_place_whatever_the_shift(self):
        for shift in (0, 1, 2, 3):
            block = make_block((8, 8), shift=shift, heads=1)
            with torch.no_grad():
                block.attn.relative_position_bias_table.zero_()
                block.norm1.weight.fill_(1)
                block.norm1.bias.zero_()
                block.attn.qkv.weight.zero_()
                block.attn.qkv.bias.zero_()
                block.attn.qkv.bias[0] = 5.0  # every query asks for the first channel
                block.attn.qkv.weight[8, 0] = 1.0
                x = torch.zeros(1, 8, 8, 8)
                x[0, 5, 2, 0] = 1.0
                attention = window_attention(block, x)[0, 0]
            assert divmod(int(attention.argmax()), 8) == (5, 2)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_stays_in_float32_under_autocast(self, dtype):
        block = make_block((8, 8))
        x = torch.randn(2, 8, 8, 8).to(dtype)
        with torch.no_grad():
            expected = window_attention(block, x.float())
            with torch.autocast("cpu", dtype=torch.bfloat16):
                attention = window_attention(block, x)
        assert attention.dtype == torch.float32
        assert torch.equal(attention, expected)

    def test_a_block_held_in_bfloat16_gives_a_close_map(self):
        block = make_block((8, 8))
        x = torch.randn(2, 8, 8, 8)
        with torch.no_grad():
            expected = window_attention(block, x)
            attention = window_attention(block.to(torch.bfloat16), x.to(torch.bfloat16))
        assert attention.dtype == torch.float32
        torch.testing.assert_close(attention, expected, rtol=0.2, atol=5e-3)


class TestStageTap:
    def test_mobilenet_stages_are_the_last_of_their_stride(self):
        model = timm.create_model("mobilenetv3_large_100", pretrained=False, num_classes=2).eval()
        seen = {}
        for name in ("blocks.3", "blocks.4", "blocks.5", "blocks.6"):
            model.get_submodule(name).register_forward_hook(lambda m, a, out, name=name: seen.update({name: out}))
        with StageTap(model, [16, 32]) as tap, torch.no_grad():
            model(torch.randn(1, 3, 64, 96))
            features = tap.features()
        assert features[16] is seen["blocks.4"]
        assert features[16].shape == (1, 112, 4, 6)
        assert features[32] is seen["blocks.6"]
        assert features[32].shape == (1, 960, 2, 3)
        assert seen["blocks.5"].shape[-2:] == (2, 3)
        assert (tap.channels(16), tap.channels(32)) == (112, 960)

    def test_swin_features_come_out_channels_first_at_their_place(self):
        model = make_swin().eval()
        photo = torch.randn(2, 3, 64, 64)
        with StageTap(model, [8, 16]) as tap, torch.no_grad():
            model(photo)
            features = tap.features()
            *_, expected_8, expected_16 = model.forward_intermediates(photo, intermediates_only=True)
        assert features[8].shape == (2, 24, 8, 8)
        torch.testing.assert_close(features[8], expected_8)
        torch.testing.assert_close(features[16], expected_16)
        assert tap.channels(16) == 48

    def test_maps_of_a_swin_are_those_of_its_own_layout(self):
        model = make_swin().eval()
        stage = {}
        model.layers[1].register_forward_hook(lambda m, a, out: stage.update(out=out))
        with StageTap(model, [8]) as tap, torch.no_grad():
            model(torch.randn(2, 3, 64, 64))
            maps = tap.maps()
        assert tap.map_count(8) == 1
        assert torch.equal(maps[8], stage["out"].square().mean(dim=-1))

    def test_works_on_photos_that_are_not_square(self):
        model = make_swin(img_size=(64, 96)).eval()
        photo = torch.randn(1, 3, 64, 96)
        with StageTap(model, [4]) as tap, torch.no_grad():
            model(photo)
            assert tap.maps()[4].shape == (1, 16, 24)
        with StageTap(model, [4], kind="window") as tap, torch.no_grad():
            model(photo)
            assert tap.maps()[4].shape == (1, 1, 16, 24)

    def test_window_maps_average_the_last_regular_and_the_last_shifted_block(self):
        model = make_swin(depths=(2, 4, 2)).eval()
        inputs = {}
        for index, block in enumerate(model.layers[1].blocks):
            block.register_forward_pre_hook(lambda m, args, index=index: inputs.update({index: args[0]}))
        with StageTap(model, [8], kind="window") as tap, torch.no_grad():
            model(torch.randn(2, 3, 64, 64))
            maps = tap.maps()[8]
            blocks = model.layers[1].blocks
            assert [any(block.shift_size) for block in blocks] == [False, True, False, True]
            expected = sum(window_attention(blocks[index], inputs[index]) for index in (2, 3)) / 2
        assert tap.map_count(8) == 2
        torch.testing.assert_close(maps, expected)

    def test_a_frozen_forward_pass_gives_maps_without_gradient(self):
        model = make_swin().eval()
        for context in (torch.no_grad, torch.inference_mode):
            with StageTap(model, [8], kind="window") as tap:
                with context():
                    model(torch.randn(1, 3, 64, 64))
                assert not tap.maps()[8].requires_grad

    def test_window_maps_of_a_training_forward_pass_carry_gradients(self):
        model = make_swin()
        with StageTap(model, [8], kind="window") as tap:
            model(torch.randn(1, 3, 64, 64))
            tap.maps()[8].square().sum().backward()
        assert model.layers[1].blocks[1].attn.qkv.weight.grad.abs().sum() > 0

    @pytest.mark.parametrize("kind", ["activation", "window"])
    def test_what_a_forward_pass_left_is_read_once(self, kind):
        model = make_swin().eval()
        with StageTap(model, [8], kind=kind) as tap, torch.no_grad():
            with pytest.raises(ModelError, match="no forward pass since the last reading"):
                tap.maps()
            model(torch.randn(1, 3, 64, 64))
            tap.maps()
            with pytest.raises(ModelError, match="run the model, then read"):
                tap.maps()

    def test_the_last_of_several_forward_passes_counts(self):
        model = make_swin().eval()
        first, second = torch.randn(2, 1, 3, 64, 64)
        with StageTap(model, [8]) as tap, torch.no_grad():
            model(second)
            expected = tap.maps()[8]
            model(first)
            model(second)
            assert torch.equal(tap.maps()[8], expected)

    def test_leaves_neither_hooks_nor_features_behind(self):
        model = make_swin().eval()
        with StageTap(model, [8]) as tap, StageTap(model, [8], kind="window"):
            model(torch.randn(1, 3, 64, 64))
            assert any(module._forward_hooks for module in model.modules())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        model(torch.randn(1, 3, 64, 64))
        with pytest.raises(ModelError, match="no forward pass"):
            tap.features()

    @pytest.mark.parametrize("kind", ["activation", "window"])
    def test_the_memory_format_changes_nothing(self, kind):
        model = make_swin().eval()
        photo = torch.randn(2, 3, 64, 64)
        with StageTap(model, [8], kind=kind) as tap, torch.no_grad():
            model(photo)
            expected = tap.maps()[8]
            model.to(memory_format=torch.channels_last)(photo.to(memory_format=torch.channels_last))
            torch.testing.assert_close(tap.maps()[8], expected)

    @pytest.mark.parametrize("kind", ["activation", "window"])
    def test_a_copy_of_a_tapped_model_does_not_feed_its_tap(self, kind):
        model = make_swin().eval()
        tap = StageTap(model, [8], kind=kind)
        photo = torch.randn(1, 3, 64, 64)
        model(photo)
        expected = tap.maps()[8]
        model(photo)
        twin = copy.deepcopy(model)
        twin(torch.zeros_like(photo))
        assert torch.equal(tap.maps()[8], expected)

    def test_sees_through_torch_compile(self):
        model = make_swin().eval()
        photo = torch.randn(1, 3, 64, 64)
        with StageTap(model, [8]) as tap, torch.no_grad():
            model(photo)
            expected = tap.maps()[8]
        compiled = torch.compile(model, backend="eager")
        with StageTap(compiled, [8]) as tap, torch.no_grad():
            for _ in range(2):
                compiled(photo)
                torch.testing.assert_close(tap.maps()[8], expected)

    def test_a_stride_that_the_model_lacks_is_reported_with_those_it_has(self):
        with pytest.raises(ModelError, match=r"stride of a stage of SwinTransformer; got 2; choose one of 4, 8, 16"):
            StageTap(make_swin(), [16, 2])

    def test_window_attention_needs_a_swin_and_leaves_other_models_untouched(self):
        model = timm.create_model("mobilenetv3_small_050", pretrained=False)
        with pytest.raises(ModelError, match="a Swin Transformer for window attention; got MobileNetV3"):
            StageTap(model, [16], kind="window")
        assert not any(module._forward_hooks for module in model.modules())

    def test_a_transformer_without_maps_is_refused(self):
        model = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=32, depth=1).eval()
        message = r"4-D output.*got shape \(1, 5, 192\) at stride 16"
        with StageTap(model, [16]), pytest.raises(ModelError, match=message):
            model(torch.zeros(1, 3, 32, 32))

    def test_a_wrong_layout_is_refused_instead_of_pooled_over_the_wrong_axis(self):
        model = make_swin().eval()
        model.output_fmt = "NCHW"
        with (
            StageTap(model, [8]),
            pytest.raises(ModelError, match=r"4-D output that has 24 channels on axis 1; got shape .* at stride 8"),
        ):
            model(torch.zeros(1, 3, 64, 64))

    def test_a_model_that_is_not_of_timm_is_refused(self):
        with pytest.raises(ModelError, match="a timm model with feature_info; got Linear"):
            StageTap(nn.Linear(2, 2), [16])

    def test_features_of_a_window_tap_are_refused(self):
        with pytest.raises(ModelError, match=r'a StageTap of kind "activation" for features\(\); got kind "window"'):
            StageTap(make_swin(), [8], kind="window").features()


@pytest.fixture
def one_process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process_group")
def test_wrapped_in_ddp_the_maps_are_the_same_and_the_loss_is_not_zero():
    teacher = make_swin().eval()
    student = timm.create_model("mobilenetv3_small_050", pretrained=False, num_classes=3).eval()
    photos = torch.randn(2, 3, 64, 64)
    with StageTap(student, [16]) as tap, torch.no_grad():
        student(photos)
        expected = tap.maps()[16]
    wrapped = nn.parallel.DistributedDataParallel(student)
    objective = DistillationObjective(w_ce=0.0, w_kd=0.0, w_att=5.0, pairs=[StagePair(16, 16)], warmup=0.0)
    with StageTap(wrapped, [16]) as tap, StageTap(teacher, [16], kind="window") as teacher_tap:
        with torch.no_grad():
            wrapped(photos)
            torch.testing.assert_close(tap.maps()[16], expected)
            teacher_logits = teacher(photos)
        logits = wrapped(photos)
        terms = objective(
            logits,
            tap.features(),
            torch.tensor([0, 1]),
            teacher_logits=teacher_logits,
            teacher_maps=teacher_tap.maps(),
        )
    terms["total"].backward()
    assert terms["attention"] > 0
    assert student.conv_stem.weight.grad.abs().sum() > 0
