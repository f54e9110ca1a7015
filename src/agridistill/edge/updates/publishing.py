"""Publishing: writes a signed release for devices from a model, golden photos and a key."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from agridistill.edge.updates.proof import PROOF_NAME, WITHOUT_PROOF, compare_command, read_proof
from agridistill.edge.updates.release import (
    MAX_RELEASE_BYTES,
    RELEASE_NAME,
    GoldenPhoto,
    RefusedError,
    Release,
    ReleaseFile,
    TrustChange,
    key_id,
    problem_of,
    signed_release,
    stored_release,
)
from agridistill.errors import EdgeError, ModelError
from agridistill.manifest import composed, sha256_of
from agridistill.photo_files import HEIC_SUFFIXES, is_heic, suffix_of
from agridistill.progress import ProgressCallback, silent
from agridistill.runtime.backends import manifest_path, open_artefact
from agridistill.runtime.engines import SUFFIXES
from agridistill.runtime.predictor import Predictor, expand
from agridistill.storage import replacing, sync_folder

MAX_GOLDEN_PHOTOS = 200
_OF_A_CLASS = 5  # golden photos of each class that are chosen from a larger folder
_NAMED_PHOTOS = 5


@dataclass(frozen=True)
class PublishSettings:
    """Settings of a release to publish: its version and channel, the test on devices, and changes of keys."""

    version: int  # grows from release to release
    channel: str = "default"  # a device only takes releases of its channel
    minimum_agreement: float = 0.9  # share of golden photos that a device must answer right, above 0 and at most 1
    base_url: str = ""  # URL of the folder with the releases, needed for releases that are sent by MQTT
    trust: tuple[bytes, ...] = ()  # public keys of 32 bytes that devices trust from now on
    revoke: tuple[str, ...] = ()  # ids of keys that devices no longer trust
    proof: Path | None = None  # result of `evaluate --against` that compares the model with the released one
    without_proof: bool = False  # publishes without `proof`, which the release then records


@dataclass(frozen=True)
class PublishResult:
    """The result of `publish`: where the release is, what it contains, and how the model did on the golden photos."""

    release: str  # path of its `release.json`
    version: int
    key_ids: tuple[str, ...]  # ids of the keys that signed it
    files: int
    size_bytes: int  # size of the files that a device downloads
    golden_photos: int
    agreement: float  # share of golden photos that the model answers right on this machine, 0 to 1
    unchanged: bool  # the same release, signed by these keys, existed already and is intact, so nothing was written
    # "holds": the release has a proof that holds; "without": `without_proof` was set; "not needed": it is the first
    # release of the channel, or has the model of the last one.
    proof: Literal["holds", "without", "not needed"] = "not needed"
    proof_headline: str = ""  # the verdict of the proof with its figures; "" without one

    def to_json(self) -> dict[str, Any]:
        """Returns the JSON of `agridistill publish --json`."""
        return asdict(self)


def publish(
    model: Path,
    golden: Path,
    out: Path,
    keys: Sequence[Ed25519PrivateKey],
    settings: PublishSettings,
    *,
    progress: ProgressCallback = silent,
) -> PublishResult:
    """Publishes a model as a signed release: writes its files to `OUT/vVERSION/`, and then `OUT/release.json`.

    Devices see the new version when `release.json` is replaced. If the release exists already with other signatures or
    with a damaged file, it is written again.

    Args:
        model: an exported model file (.onnx or .tflite), with its manifest next to it.
        golden: folder of golden photos, which test the model on each device. Subfolders name the expected class;
            without subfolders, a device must give the same answers as the model on this machine. Of more than 200
            photos in subfolders, five of each class are used.
        out: folder from which devices download; it holds the releases of all versions.
        keys: private keys that sign the release; a device must trust at least one of them.
        progress: called after each golden photo.

    Raises:
        EdgeError: there is no key, another release with this version or a higher one is published already, its
            `release.json` is damaged, a setting is not allowed, a golden photo is HEIC, or there is no proof that the
            model may replace the released one.
        ModelError: `model` is not an exported model, or answers too few golden photos right.
        DataError: a golden photo cannot be read.
    """
    if model.suffix not in SUFFIXES or not model.is_file():
        raise ModelError("an exported model (.onnx, .tflite)", f"'{model}'", "run `agridistill export` first")
    if not keys:
        raise EdgeError("a private key to sign the release", "none", "name it with --key, or create one with --new-key")
    predictor = Predictor(open_artefact(model))
    published = _published(out)
    if published is None or published.version < settings.version:
        _require_proof(model, predictor.manifest.weights_sha256, published, out, settings)
    photos, labels, agreement = _golden(golden, predictor, settings.minimum_agreement, progress)
    names = [f"golden-{number:03d}{photo.suffix.lower()}" for number, photo in enumerate(photos, 1)]
    contents: dict[str, Path | bytes] = {
        model.name: model,
        manifest_path(model).name: manifest_path(model),
        **dict(zip(names, photos, strict=True)),
    }
    headline = ""
    if settings.proof is not None or settings.without_proof:
        if PROOF_NAME in contents:
            raise EdgeError(f"a model with a manifest other than {PROOF_NAME}", f"'{model}'", "rename the model")
        contents[PROOF_NAME] = WITHOUT_PROOF
    if settings.proof is not None:
        proof = read_proof(settings.proof)
        contents[PROOF_NAME], headline = proof.for_release(), proof.document.verdict.headline
    release = _release(contents, model, predictor.manifest.classes, dict(zip(names, labels, strict=True)), settings)
    own = [key_id(key.public_key().public_bytes_raw()) for key in keys]
    if set(own) <= set(settings.revoke) and not settings.trust:
        raise EdgeError(
            "a key that devices trust after this release",
            "only signing keys that --revoke-key revokes",
            "add the next key with --trust-key",
        )
    unchanged = published is not None and _is_same(published, release, out) and _is_intact(published, keys, out)
    if not unchanged:
        _write(out, release, contents, signed_release(release, keys))
    return PublishResult(
        release=str(out / RELEASE_NAME),
        version=release.version,
        key_ids=tuple(own),
        files=len(contents),
        size_bytes=release.size_bytes,
        golden_photos=len(photos),
        agreement=agreement,
        unchanged=unchanged,
        proof="holds" if settings.proof is not None else "without" if settings.without_proof else "not needed",
        proof_headline=headline,
    )


def _golden(
    folder: Path, predictor: Predictor, minimum: float, progress: ProgressCallback
) -> tuple[list[Path], list[str], float]:
    photos = expand([folder])
    if len(photos) > MAX_GOLDEN_PHOTOS and all(photo.parent != folder for photo in photos):
        photos = _some_of_each_class(photos)
    if len(photos) > MAX_GOLDEN_PHOTOS:
        raise EdgeError(
            f"at most {MAX_GOLDEN_PHOTOS} golden photos", f"{len(photos)} in '{folder}'", "remove some of them"
        )
    for photo in photos:
        if suffix_of(photo.name) in HEIC_SUFFIXES or is_heic(photo):
            # It needs an extra that devices may not have.
            got = f"the HEIC photo '{photo}'"
            raise EdgeError("golden photos that every device can read", got, "save it as JPEG, or remove it")
    answers = []
    for photo in photos:
        answers.append(predictor.predict(photo).label)
        progress(len(answers), len(photos))
    if all(photo.parent == folder for photo in photos):
        return photos, answers, 1.0
    label_of = {composed(label): label for label in predictor.manifest.classes}
    labels = [label_of.get(composed(photo.parent.name), photo.parent.name) for photo in photos]
    for photo, label in zip(photos, labels, strict=True):
        if label not in predictor.manifest.classes:
            raise EdgeError(
                "golden photos in folders named after their class",
                f"'{photo}'",
                f"name its folder after a class of the model ({', '.join(predictor.manifest.classes[:10])})",
            )
    wrong = [photo for photo, label, answer in zip(photos, labels, answers, strict=True) if label != answer]
    agreement = (len(photos) - len(wrong)) / len(photos)
    if agreement < minimum:
        named = ", ".join(f"'{photo}'" for photo in wrong[:_NAMED_PHOTOS])
        named += f" and {len(wrong) - _NAMED_PHOTOS} more" if len(wrong) > _NAMED_PHOTOS else ""
        raise ModelError(
            f"a model that answers at least {100 * minimum:g} % of its golden photos right",
            f"{100 * agreement:.1f} % (wrong: {named})",
            "use other photos or lower --minimum-agreement",
        )
    return photos, labels, agreement


def _some_of_each_class(photos: Sequence[Path]) -> list[Path]:
    """Chooses five photos of each class folder, evenly spaced by name; all if there are fewer."""
    by_class: dict[str, list[Path]] = {}
    for photo in photos:
        by_class.setdefault(photo.parent.name, []).append(photo)
    return [
        of_class[number * len(of_class) // min(_OF_A_CLASS, len(of_class))]
        for of_class in by_class.values()
        for number in range(min(_OF_A_CLASS, len(of_class)))
    ]


def _release(
    contents: Mapping[str, Path | bytes],
    model: Path,
    classes: tuple[str, ...],
    labels: dict[str, str],
    settings: PublishSettings,
) -> Release:
    base_url = settings.base_url and settings.base_url.rstrip("/") + "/"
    try:
        return Release(
            version=settings.version,
            created=datetime.now(UTC).replace(microsecond=0),
            channel=settings.channel,
            files=tuple(
                ReleaseFile(name=name, size_bytes=len(content), sha256=sha256(content).hexdigest())
                if isinstance(content, bytes)
                else ReleaseFile(name=name, size_bytes=content.stat().st_size, sha256=sha256_of(content))
                for name, content in contents.items()
            ),
            model=model.name,
            classes=classes,
            golden=tuple(GoldenPhoto(photo=name, label=label) for name, label in labels.items()),
            minimum_agreement=settings.minimum_agreement,
            base_url=base_url,
            trust=TrustChange(add=tuple(key.hex() for key in settings.trust), remove=settings.revoke),
        )
    except ValidationError as error:
        raise EdgeError("settings that are allowed in a release", problem_of(error), "correct this value") from None


def _published(out: Path) -> Release | None:
    """Returns the release in the folder; None without one."""
    path = out / RELEASE_NAME
    if not path.exists():
        return None
    try:
        return stored_release(path.read_bytes())
    except RefusedError as error:
        raise EdgeError(
            f"a {RELEASE_NAME} that this AgriDistill can read",
            f"'{path}' ({error.got})",
            "restore it; or delete it, and use a --version above the last one",
        ) from None


def _is_same(published: Release, release: Release, out: Path) -> bool:
    """Whether a release is published already; raises EdgeError if another one has its version, or a higher one."""
    if published.version > release.version:
        raise EdgeError(
            f"a version above {published.version}",
            f"version {release.version}",
            "use a higher --version, because devices refuse lower ones",
        )
    if published.version < release.version:
        return False
    if published.model_copy(update={"created": release.created}) != release:
        raise EdgeError(
            "a version that is not published yet",
            f"version {release.version}, which is in '{out}' with other content",
            f"publish with --version {release.version + 1}",
        )
    return True


def _is_intact(published: Release, keys: Sequence[Ed25519PrivateKey], out: Path) -> bool:
    """Whether exactly these keys have signed the published release, and all its files are intact."""
    # Ed25519 signs the same content always in the same way.
    is_signed = (out / RELEASE_NAME).read_bytes() == signed_release(published, keys)
    return is_signed and all(file.is_intact(out / published.folder / file.name) for file in published.files)


def _require_proof(model: Path, sha256: str, published: Release | None, out: Path, settings: PublishSettings) -> None:
    """Checks the proof that a model may replace the published one of its channel."""
    if settings.without_proof:
        return
    if published is not None and published.channel != settings.channel and settings.proof is None:
        raise EdgeError(
            f"a folder of its own for the releases of the channel '{settings.channel}'",
            f"'{out}', whose last release is for the channel '{published.channel}'",
            "publish to another --out; or add --against PROOF or --without-proof",
        )
    if published is not None and published.channel == settings.channel:
        old_sha256 = next(file.sha256 for file in published.files if file.name == published.model)
        old = out / published.folder / published.model
    else:
        old_sha256, old = None, Path("OLD")
    if settings.proof is not None:
        read_proof(settings.proof).require(model, sha256, old, old_sha256)
    elif old_sha256 not in (None, sha256):
        raise EdgeError(
            f"a proof that '{model}' is no worse than version {published.version if published else ''}",
            "none",
            f"run {compare_command(model, old)} and add --against proof.json; or add --without-proof",
        )


def _write(out: Path, release: Release, contents: Mapping[str, Path | bytes], envelope: bytes) -> None:
    if len(envelope) > MAX_RELEASE_BYTES:
        raise EdgeError(
            f"a {RELEASE_NAME} of at most {MAX_RELEASE_BYTES:,} bytes",
            f"{len(envelope):,} bytes",
            "use fewer golden photos",
        )
    folder = out / release.folder
    for name, content in contents.items():
        with replacing(folder / name) as temporary:
            if isinstance(content, bytes):
                temporary.write_bytes(content)
            else:
                shutil.copyfile(content, temporary)
    sync_folder(folder)
    # Written last: until then a device finds the previous release, whose files are still there.
    with replacing(out / RELEASE_NAME) as temporary:
        temporary.write_bytes(envelope)
    sync_folder(out)
