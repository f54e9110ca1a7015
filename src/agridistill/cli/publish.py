"""`agridistill publish`: a signed release of a model, which devices fetch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from agridistill.cli import options
from agridistill.cli.output import next_command, print_json, progress_bar, stderr

_KEY_ID = re.compile(r"[0-9a-f]{16}")


def publish(
    model: Annotated[Path | None, Argument(metavar="MODEL", help="Exported model, or a shipped one (tomato).")] = None,
    key: Annotated[list[Path] | None, Option(help="Private key that signs; repeatable.")] = None,
    version: Annotated[int | None, Option(min=1, help="Above the last one.")] = None,
    golden: Annotated[
        Path | None, Option(help="Photos in class folders, or photos that the model answers now.")
    ] = None,
    out: Annotated[Path | None, Option(help="Folder that devices will see.")] = None,
    base_url: Annotated[str, Option(help="Its address, for releases sent by MQTT.")] = "",
    channel: Annotated[str, Option(help="Which devices take it.")] = "default",
    minimum_agreement: Annotated[float, Option(min=0.0, max=1.0, help="Share of golden photos to get right.")] = 0.9,
    trust_key: Annotated[list[Path] | None, Option(help="Public key to trust from now on; repeatable.")] = None,
    revoke_key: Annotated[list[str] | None, Option(metavar="ID", help="Key to trust no more; repeatable.")] = None,
    new_key: Annotated[Path | None, Option(help="Only make a key: this file and FILE.pub.")] = None,
    json: options.Json = False,
) -> None:
    """Sign a release of an exported model; devices fetch it, try it, and return to the old one if it fails.

    A key's password is read from AGRIDISTILL_KEY_PASSWORD.
    """
    from agridistill.api import training_extra

    with training_extra("cryptography, to sign releases", "edge"):
        from agridistill.edge.updates.publishing import PublishSettings
        from agridistill.edge.updates.publishing import publish as write
        from agridistill.edge.updates.release import read_private_key, read_public_key
    from agridistill.runtime.backends import model_path
    from agridistill.storage import require_writable

    if new_key is not None:
        _make_key(new_key, json=json)
        return
    named = {"MODEL": model, "--key": key or None, "--version": version, "--golden": golden, "--out": out}
    if not key or model is None or golden is None or out is None or version is None:
        missing = [name for name, value in named.items() if value is None]
        raise typer.BadParameter(f"{', '.join(missing)} missing (or --new-key FILE to make a key)")
    for name in revoke_key or []:
        if not _KEY_ID.fullmatch(name):
            raise typer.BadParameter(f"--revoke-key takes a key's id of 16 hexadecimal digits, not '{name}'")
    settings = PublishSettings(
        version=version,
        channel=channel,
        minimum_agreement=minimum_agreement,
        base_url=base_url,
        trust=tuple(read_public_key(path) for path in trust_key or []),
        revoke=tuple(revoke_key or []),
    )
    for path in key:
        if path.resolve().is_relative_to(out.resolve()):
            raise typer.BadParameter(f"the private key '{path}' lies in '{out}', which devices will see")
    require_writable(out, folder=True)
    keys = [read_private_key(path) for path in key]
    with progress_bar("golden photos") as progress:
        result = write(model_path(model), golden, out, keys, settings, progress=progress)
    if json:
        print_json(result.to_json())
    else:
        state = "exists unchanged" if result.unchanged else "written"
        stderr.print(
            f"{result.release}: version {result.version} {state}, {result.files} files, "
            f"{result.size_bytes / 1e6:.2f} MB, signed by {', '.join(result.key_ids)}; of {result.golden_photos} "
            f"golden photos {100 * result.agreement:.1f} % right here, at least {100 * settings.minimum_agreement:g} % "
            "needed on a device"
        )
    next_command("watch", "SOURCE", "--model", model, "--config", "watch.toml")


def _make_key(path: Path, *, json: bool) -> None:
    from agridistill.edge.updates.release import PUBLIC_SUFFIX, create_key

    identity, public = create_key(path), f"{path}{PUBLIC_SUFFIX}"
    if json:
        print_json({"key_id": identity, "private_key": str(path), "public_key": public})
    else:
        stderr.print(f"key {identity}: '{path}' signs, keep it secret; '{public}' goes onto the devices")
    next_command("publish", "MODEL", "--key", path, "--version", "1", "--golden", "PHOTOS", "--out", "FOLDER")
