"""Settings from TOML: strict types, and unknown keys at any depth."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field, PositiveInt

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


def test_names_that_are_not_utf_8_are_taken_as_they_are() -> None:
    found = build_settings(Camera, {"name": "caf\udce9", "file": "caf\udce9.pem", "lens": {"width_mm": 2}})
    assert (found.name, found.file, found.lens) == ("caf\udce9", Path("caf\udce9.pem"), Lens(2.0))


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
        ({}, "expected a value for name; got none in 'c.toml'; correct it"),
    ],
)
def test_a_wrong_key_or_value_is_one_line(table: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        build_settings(Camera, table, "in 'c.toml'")
    assert message in str(raised.value)


@dataclass(frozen=True)
class Flash:
    level: Annotated[float, Field(gt=0, le=1)] = 1.0


@dataclass(frozen=True)
class Limits:
    photos: Annotated[int, Field(ge=1, le=1000)] = 20
    cover: Annotated[float, Field(ge=0, lt=0.5)] | None = None
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = ()
    delay: Annotated[float | None, Field(gt=0)] = None
    most: Annotated[int, Field(le=10)] = 1
    columns: PositiveInt = 1
    under: Annotated[int, Field(lt=10)] = 1
    flashes: tuple[Flash, ...] = ()
    by_season: dict[str, Flash] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"photos": 0}, "top.photos from 1 to 1,000; got 0"),
        ({"photos": 1001}, "top.photos from 1 to 1,000; got 1001"),
        ({"cover": 0.5}, "top.cover from 0 to below 0.5; got 0.5"),
        ({"share": 1}, "top.share above 0 and below 1; got 1"),
        ({"seeds": [3, -1]}, "top.seeds.1 of at least 0; got -1"),
        ({"delay": 0}, "top.delay above 0; got 0"),
        ({"most": 11}, "top.most of at most 10; got 11"),
        ({"columns": 0}, "top.columns above 0; got 0"),
        ({"under": 10}, "top.under below 10; got 10"),
        ({"flashes": [{"level": 1}, {"level": 1.5}]}, "top.flashes.1.level above 0 and up to 1; got 1.5"),
        ({"by_season": {"dry": {"level": 0}}}, "top.by_season.dry.level above 0 and up to 1; got 0"),
    ],
)
def test_a_value_out_of_its_range_is_named_with_the_whole_range(table: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        build_settings(Limits, table, "in 'c.toml'", "top")
    assert str(raised.value) == f"expected {message} in 'c.toml'; correct it"


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
