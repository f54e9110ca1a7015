"""Not a test: runs one update again and again, each time killed one step later. See test_kill.py.

A step is whatever changes the disk: a file opened to be written, a name changed or removed, a folder made, an fsync.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import onnxruntime  # noqa: F401 - once, and not in each child

from agridistill.edge.updates import prepare, updater
from agridistill.edge.updates.release import read_trusted_keys
from agridistill.edge.updates.slots import ModelSlots
from agridistill.runtime.backends import open_artefact
from agridistill.runtime.predictor import Predictor

_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")


def kill_at(last: int, state: Path) -> None:
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if done == last:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, given: tuple[object, ...]) -> None:
        is_write = event == "open" and isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR)
        if (is_write or event in _CHANGES) and str(given[0]).startswith(str(state)):
            step()

    sync = os.fsync

    def synced(descriptor: int) -> None:
        step()
        sync(descriptor)

    os.fsync = synced  # type: ignore[assignment]
    sys.addaudithook(hook)


def in_child(work: object) -> int:
    """The exit code of a process that does the work: -9 where it was killed."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()  # type: ignore[operator]
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    state, served, first, keys, what = (Path(word) for word in sys.argv[1:6])
    updater.check_golden = lambda *given: None  # changes nothing on the disk
    slots = ModelSlots(state / "models", first)
    prepare.SPARE_BYTES = 0
    agent = updater.Updater(slots, read_trusted_keys(keys))
    before = shutil.copytree(state, state.with_name("before"))

    def update() -> None:
        if str(what) == "confirm":
            slots.start()
            slots.confirm()
        elif str(what) == "return":
            slots.give_up(slots.pointer().active, "it fails")
        else:
            # "current" where the kill came after the switch.
            assert agent.check(served).outcome in ("installed", "current")

    def restart() -> None:
        active = slots.start()
        answer = Predictor(open_artefact(active.path, threads=1)).predict(np.full((20, 20, 3), (9, 200, 9), np.uint8))
        assert answer.label == "green"
        (state / "version").write_text(str(active.version))

    versions = []
    for last in range(1, 10_000):
        shutil.rmtree(state)
        shutil.copytree(before, state)

        def killed(last: int = last) -> None:
            kill_at(last, state)
            update()

        code = in_child(killed)
        assert code in (0, -signal.SIGKILL), code
        assert in_child(restart) == 0, f"no model after a kill at step {last}"
        versions.append(int((state / "version").read_text()))
        if code == 0:
            break
        # What was interrupted can be done again.
        assert in_child(update) == 0, f"no second try after a kill at step {last}"
        assert in_child(restart) == 0
    sys.stdout.write(json.dumps(versions))


if __name__ == "__main__":
    main()
