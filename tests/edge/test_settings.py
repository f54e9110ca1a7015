from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agridistill.edge.settings import WatchSettings, read_secret, read_settings, watch_settings
from agridistill.errors import ConfigError

WHOLE = """
source = "photos"
model = "models/leaf.onnx"
device = "greenhouse-3"
every_s = 2
[quality]
darkest = 40
[[rules]]
name = "blight"
classes = ["*blight"]
window_minutes = 120
quiet = "22:00-06:00"
[broker]
url = "mqtts://pi@farm.example/fields"
password_file = "secrets/mqtt"
[webhook]
url = "https://hooks.example/x"
[command]
words = ["notify-send", "leaf"]
[page]
port = 9000
[updates]
keys = "keys"
source = "https://farm.example/release.json"
[outbox]
max_megabytes = 50
[history]
detections = 1000
"""


def test_the_authority_of_a_camera_lies_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "camera.crt").write_text("")
    (tmp_path / "watch.toml").write_text('source = "https://camera/a.jpg"\nca_file = "camera.crt"\n')
    assert read_settings(tmp_path / "watch.toml").ca_file == tmp_path / "camera.crt"


def test_a_whole_file_becomes_settings_with_paths_from_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "watch.toml"
    file.write_text(WHOLE)
    (tmp_path / "photos").mkdir()
    (tmp_path / "keys").mkdir()
    found = read_settings(file)
    assert found.source == str(tmp_path / "photos")
    assert found.model == tmp_path / "models" / "leaf.onnx"
    assert found.every_s == 2.0
    assert found.quality.darkest == 40.0
    assert found.quality.brightest == 0.35
    assert found.rules[0].classes == ("*blight",)
    assert [rule.name for rule in found.rules_for(["rust"])] == ["blight"]
    assert found.broker is not None
    assert found.broker.password_file == tmp_path / "secrets" / "mqtt"
    assert found.updates is not None
    assert (found.updates.keys, found.updates.source) == (tmp_path / "keys", "https://farm.example/release.json")
    assert found.outbox.max_megabytes == 50
    assert found.command is not None
    assert found.command.words == ("notify-send", "leaf")


def test_what_is_not_a_path_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "watch.toml"
    for source in ("0", "/dev/video0", "rtsp://camera/stream", "https://camera/snap.jpg"):
        file.write_text(f'source = "{source}"\nmodel = "tomato"\n')
        found = read_settings(file)
        assert (found.source, found.model) == (source, Path("tomato"))


def test_the_home_of_an_unknown_user_is_a_path_like_any_other(tmp_path: Path) -> None:
    file = tmp_path / "watch.toml"
    file.write_text('source = "~nobody-of-this-name/photos"\nmodel = "~nobody-of-this-name/x.onnx"\n')
    assert read_settings(file).model == tmp_path / "~nobody-of-this-name" / "x.onnx"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sorce = 'x'", "'sorce' in .* did you mean 'source'"),
        ("[quality]\ndarkes = 1", r"known key of \[quality\]; got 'darkes' .* did you mean 'darkest'"),
        (
            "[[rules]]\nname='a'\nclasses=['b']\nshares=1",
            r"known key of \[rules\]; got 'shares' .* did you mean 'share'",
        ),
        ("[broker]\nurl='x'\npasword_file='y'", "did you mean 'password_file'"),
        ("threads = '2'", r"threads: .*got '2'"),
        ("[[rules]]\nname='a'", "rules.0.classes"),
        ("[[rules]]\nname='a'\nclasses=['b']\nshare=2.0", "rules.0.share.*got 2.0"),
        ("[[rules]]\nname='a'\nclasses=['b']\n[[rules]]\nname='a'\nclasses=['b']", "'a' twice"),
        ("device = 'a/b'", "device name"),
        ("plot = 'a/b#+'", r"a plot name \(plot\) without .*; got 'a/b#\+'; for example 'a-b'"),
        ('plot = "a\\nb"', r"a plot name \(plot\) without .*; got 'a\\nb'; for example 'a-b'"),
        (
            "model = ''",
            r"a model file or the name of a shipped model \(model\); got an empty path or '.'; for example model = ",
        ),
        ("threads = 3000", "expected at most .* threads .* got 3000"),
        ("after = 'burn'", "after"),
        ("every_s = inf", "finite"),
        ("window_minutes = 0", "window_minutes"),
        ("[command]\nwords = []", "command.words"),
        ('[command]\nwords = [""]', "command.words"),
        ("[page]\nport = 65536", "page.port.*got 65536"),
        ("rules = 3", "rules"),
        ("broker = 'mqtt://x'", "broker"),
        ("not toml", "a settings file in TOML"),
        ("[webhook]\nurl=['https://hooks.example/SECRET']", r"^(?!.*SECRET).*webhook.url"),
        ("source = ['rtsp://pi:SECRET@camera']", r"^(?!.*SECRET).*source"),
        ("[updates]\nkeys='k'\nevery_hours=0", "updates.every_hours.*got 0"),
        ("every_s = -1", "every_s"),
        ("[outbox]\nmax_megabytes = 0.001", r"outbox\.max_megabytes.*0\.01"),
        ("[history]\ndetections = 0", r"history\.detections.*1"),
    ],
)
def test_a_mistake_is_told_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "watch.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_settings(file)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_told() -> None:
    with pytest.raises(ConfigError, match=r"'no\.toml', which does not exist"):
        read_settings(Path("no.toml"))


def test_a_device_without_a_name_takes_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "pi 4.fields/#1")
    assert WatchSettings().device_name == "pi-4-fields-1"
    assert watch_settings({"device": "x"}, where="here").device_name == "x"


def test_a_secret_comes_from_its_file_else_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "secret"
    file.write_text("from file\n")
    monkeypatch.setenv("SOME_SECRET", "from environment")
    assert read_secret(file, "SOME_SECRET") == "from file"
    assert read_secret(None, "SOME_SECRET") == "from environment"
    assert read_secret(None, "NO_SUCH_SECRET") is None
    file.write_text("\n")
    with pytest.raises(ConfigError, match="which is empty"):
        read_secret(file, "SOME_SECRET")
    with pytest.raises(ConfigError, match="No such file"):
        read_secret(tmp_path / "no", "SOME_SECRET")


def test_without_rules_all_ill_classes_are_warned_of_unless_a_setting_turns_that_off() -> None:
    settings = watch_settings({"window_minutes": 90}, where="here")
    (rule,) = settings.rules_for(["rust", "blight"])
    assert (rule.indices(["healthy", "rust", "blight"]), rule.window_minutes) == ([1, 2], 90)
    assert watch_settings({"default_rules": False}, where="here").rules_for(["rust"]) == ()


@pytest.mark.parametrize(
    ("document", "keeps"),
    [
        ({}, False),
        ({"page": {}}, True),
        ({"page": {"host": "::1"}}, True),
        ({"page": {"host": "192.168.0.4"}}, False),
        ({"page": {"host": "192.168.0.4"}, "thumbnails": True}, True),
        ({"page": {}, "thumbnails": False}, False),
        ({"thumbnails": True}, True),
    ],
)
def test_pictures_are_kept_for_a_page_on_this_device_alone_unless_set(document: dict[str, Any], keeps: bool) -> None:
    assert watch_settings(document, where="here").keeps_thumbnails is keeps


def test_a_device_name_that_topics_cannot_hold_is_refused_with_one_that_they_can() -> None:
    with pytest.raises(ConfigError, match=r"got 'Field 1'; for example 'Field-1'"):
        watch_settings({"device": "Field 1"}, where="here")
    with pytest.raises(ConfigError, match="choose another"):
        watch_settings({"device": "///"}, where="here")
