"""Settings from TOML: strict types, and unknown keys at any depth."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agridistill.errors import ConfigError, DataError
from agridistill.settings_file import build_settings, read_toml, require_known_keys


@dataclass(frozen=True)
class Lens:
    width_mm: float = 1.0


@dataclass(frozen=True)
class Camera:
    name: str
    lens: Lens = field(default_factory=Lens)
    spare: Lens | None = None
    filters: tuple[Lens, ...] = ()
    by_season: dict[str, Lens] = field(default_factory=dict)
    url: str = ""
    file: Path | None = None


def test_tables_of_every_kind_become_settings() -> None:
    table = {
        "name": "north",
        "lens": {"width_mm": 2},
        "filters": [{"width_mm": 3.5}],
        "by_season": {"dry": {"width_mm": 4.0}},
        "file": "a.pem",
    }
    expected = Camera("north", Lens(2.0), None, (Lens(3.5),), {"dry": Lens(4.0)}, "", Path("a.pem"))
    assert build_settings(Camera, table) == expected


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"nam": "x"}, "expected a known key; got 'nam' in 'c.toml'; did you mean 'name'?"),
        ({"lens": {"width": 1}}, "expected a known key of [lens]; got 'width' in 'c.toml'; did you mean 'width_mm'?"),
        ({"spare": {"width": 1}}, "expected a known key of [spare]"),
        ({"filters": [{"width_mm": 1}, {"width": 1}]}, "expected a known key of [filters]"),
        ({"by_season": {"dry": {"width": 1}}}, "expected a known key of [by_season.dry]"),
        ({"name": 3}, "expected name: input should be a valid string; got 3 in 'c.toml'; correct it"),
        ({"name": "x", "lens": {"width_mm": "2"}}, "expected lens.width_mm: input should be a valid number; got '2'"),
        ({"name": "x", "lens": {"width_mm": float("nan")}}, "expected lens: text, a finite number"),
        ({}, "expected name: "),
    ],
)
def test_a_wrong_key_or_value_is_one_line(table: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        build_settings(Camera, table, "in 'c.toml'")
    assert message in str(raised.value)


def test_secret_values_never_stand_in_an_error() -> None:
    with pytest.raises(ConfigError) as raised:
        build_settings(Camera, {"name": "x", "url": ["http://me:SECRET@camera"]}, secret={"url"})
    assert "SECRET" not in str(raised.value)
    assert "expected url: " in str(raised.value)


def test_a_section_is_named_whole() -> None:
    with pytest.raises(ConfigError, match=r"a known key of \[train.lens\]; got 'x' in the settings"):
        require_known_keys(Camera, {"lens": {"x": 1}}, "in the settings", "train")


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected a map; got '.*none.toml', which does not exist; check the path"):
        read_toml(tmp_path / "none.toml", "a map", error_type=DataError)
    (tmp_path / "bad.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"expected a map in TOML; got '.*bad.toml' \(.*\); correct the file"):
        read_toml(tmp_path / "bad.toml", "a map")
    (tmp_path / "good.toml").write_text("a = 1", encoding="utf-8-sig")  # Notepad's byte order mark
    assert read_toml(tmp_path / "good.toml", "a map") == {"a": 1}
