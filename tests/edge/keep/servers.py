"""Real servers for uploads: rclone's WebDAV, and moto's S3 behind a service that presigns addresses."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.edge.conftest import free_port, wait_for
from tests.needs import peers, program

USER, PASSWORD = "greenhouse-1", "s3cr3t"
_CLIENT = """
import boto3, json, sys
keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "us-east-1"}
client = boto3.client("s3", endpoint_url=sys.argv[1], **keys)
"""
_SIGNER = f"""{_CLIENT}
client.create_bucket(Bucket="kept")
print("ready", flush=True)
for line in sys.stdin:
    given = {{"Bucket": "kept", "Key": line.strip()}}
    print(client.generate_presigned_url("put_object", Params=given, ExpiresIn=300), flush=True)
"""
_READER = f"""{_CLIENT}
names = [item["Key"] for item in client.list_objects_v2(Bucket="kept").get("Contents", [])]
print(json.dumps({{name: client.get_object(Bucket="kept", Key=name)["Body"].read().hex() for name in names}}))
"""


class WebDav:
    """rclone serves a folder by WebDAV."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.port = folder, free_port()
        self.address = f"http://127.0.0.1:{self.port}/greenhouse-1/kept/"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *more: str) -> None:
        rclone = program("rclone")
        assert rclone is not None
        words = ("serve", "webdav", str(self.folder), "--addr", f"127.0.0.1:{self.port}", "--config", "/dev/null")
        words = (*words, "--user", USER, "--pass", PASSWORD, "--dir-cache-time", "0s", "--log-level", "ERROR", *more)
        self._process = subprocess.Popen([rclone, *words], stderr=subprocess.DEVNULL)
        wait_for(self._answers, what="rclone")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)

    def _answers(self) -> bool:
        import socket

        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return True
        return False


class PresignedS3:
    """moto's S3, and a service whose answer to a PUT is a redirect (307) to a presigned address there."""

    def __init__(self) -> None:
        self._python = str(peers() / "moto/bin/python")
        port = free_port()
        self.endpoint = f"http://127.0.0.1:{port}"
        self._moto = subprocess.Popen(
            [self._python, "-c", "from moto.server import main; main()", "-p", str(port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(lambda: self._run(_READER.replace("kept", "none"), check=False) != "", 60, "moto")
        self._signer = subprocess.Popen(
            [self._python, "-c", _SIGNER, self.endpoint], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._signer.stdout is not None
        assert self._signer.stdout.readline() == "ready\n"
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(307)
                self.send_header("Location", outer._signed(self.path.removeprefix("/")))
                self.end_headers()

            def log_message(self, *words: object) -> None:
                pass

        self._service = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._service.server_port}/{{name}}"
        threading.Thread(target=self._service.serve_forever, daemon=True).start()

    def files(self) -> dict[str, bytes]:
        import json

        return {name: bytes.fromhex(content) for name, content in json.loads(self._run(_READER)).items()}

    def close(self) -> None:
        self._service.shutdown()
        self._service.server_close()
        for process in (self._signer, self._moto):
            process.kill()
            process.communicate()

    def _signed(self, name: str) -> str:
        assert self._signer.stdin is not None
        assert self._signer.stdout is not None
        self._signer.stdin.write(f"{name}\n")
        self._signer.stdin.flush()
        return self._signer.stdout.readline().strip()

    def _run(self, code: str, *, check: bool = True) -> str:
        done = subprocess.run([self._python, "-c", code, self.endpoint], capture_output=True, text=True, check=check)
        return done.stdout or ("there" if "NoSuchBucket" in done.stderr else "")


@contextlib.contextmanager
def webdav(folder: Path, *more: str) -> Iterator[WebDav]:
    found = WebDav(folder)
    found.start(*more)
    try:
        yield found
    finally:
        found.stop()
