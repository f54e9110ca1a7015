"""The proof of a release: the result of `evaluate --against`, which shows that its model may replace the last one."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from agridistill.errors import EdgeError
from agridistill.storage import json_text

PROOF_NAME = "proof.json"  # among the files of a release
# Its content in a release that was published without a proof.
WITHOUT_PROOF = json_text({"format_version": 1, "without_proof": True}).encode()
# Keys that name folders of the publisher, which are left out of a release.
_PRIVATE = ("command", "path", "model")


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class _Model(_Strict):
    sha256: str
    model: str


class _Verdict(_Strict):
    holds: bool
    level: Literal["holds", "not shown", "fails"]
    headline: str

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.holds != (self.level == "holds"):
            raise ValueError(f"holds is {str(self.holds).lower()}, but level is '{self.level}'")
        return self


class _Document(_Strict):
    """The keys of the document that a publisher needs; docs/schemas/proof.schema.json describes all."""

    format_version: Literal[1]
    verdict: _Verdict
    data: dict[str, Any]
    new: _Model
    old: _Model


@dataclass(frozen=True)
class Proof:
    """A file that `evaluate NEW DATA --against OLD --out FILE` wrote."""

    path: Path
    whole: dict[str, Any]
    document: _Document

    def for_release(self) -> bytes:
        """Returns its content as JSON, without paths, names of photos and the command line of the publisher."""
        public = {key: value for key, value in self.whole.items() if key not in _PRIVATE}
        for part in ("new", "old", "data"):
            public[part] = {key: value for key, value in self.whole[part].items() if key not in _PRIVATE}
            if isinstance(scores := public[part].get("evaluation"), dict):
                public[part]["evaluation"] = {key: value for key, value in scores.items() if key != "skipped_photos"}
        return json_text(public).encode()

    def require(self, model: Path, sha256: str, old: Path, old_sha256: str | None) -> None:
        """Checks that it holds for the `model` to publish and the one that was released before.

        `old` is that one's path, for the error; `old_sha256` is None if there is none.

        Raises:
            EdgeError: it is about other models, or does not hold.
        """
        again = f"run {compare_command(model, old)}"
        if self.document.new.sha256 != sha256:
            got = f"'{self.path}' about '{self.document.new.model}' (sha256 {self.document.new.sha256[:12]}…)"
            raise EdgeError(f"a proof about '{model}' (sha256 {sha256[:12]}…)", got, again)
        if old_sha256 is not None and self.document.old.sha256 != old_sha256:
            got = f"'{self.path}' against '{self.document.old.model}' (sha256 {self.document.old.sha256[:12]}…)"
            raise EdgeError(f"a proof against the released model (sha256 {old_sha256[:12]}…)", got, again)
        if not self.document.verdict.holds:
            raise EdgeError(
                "a proof that holds",
                f"'{self.path}': {self.document.verdict.headline}",
                "improve the model, or compare with more photos; --without-proof publishes it all the same",
            )


def read_proof(path: Path) -> Proof:
    """Reads a proof; raises EdgeError if the file is no result of `evaluate --against`."""
    expected, remedy = "the result of `agridistill evaluate --against OLD --out FILE`", "write it again"
    try:
        whole = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
        return Proof(path, whole, _Document.model_validate(whole))
    except OSError as error:
        raise EdgeError(expected, f"'{path}' ({error.strerror or error})", "check the path") from None
    except ValidationError as error:
        first = error.errors()[0]
        got = f"'{path}' ({'.'.join(map(str, first['loc'])) or 'document'}: {first['msg'][:200]})"
        raise EdgeError(expected, got, remedy) from None
    except (ValueError, RecursionError):
        raise EdgeError(expected, f"'{path}', which is not JSON", remedy) from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def compare_command(model: Path, old: Path) -> str:
    """Returns the command that writes a proof."""
    words = ("agridistill", "evaluate", str(model), "PHOTOS", "--against", str(old), "--out", "proof.json")
    return f"`{shlex.join(words)}`"
