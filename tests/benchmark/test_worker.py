import os
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from agridistill.benchmark.worker import Worker, start_worker
from agridistill.errors import MissingExtraError, ModelError

ANSWERING = """
import json, sys
for line in sys.stdin:
    question = json.loads(line)
    print(json.dumps({"asked": question}), flush=True)
"""
DYING = """
import sys
sys.stdin.readline()
print("first line", file=sys.stderr)
print("no room for the weights", file=sys.stderr)
sys.exit(3)
"""
KILLED = """
import os, signal, sys
sys.stdin.readline()
os.kill(os.getpid(), signal.SIGKILL)
"""
HANGING = """
import time
time.sleep(600)
"""
REFUSING = """
import json, sys
sys.stdin.readline()
print(json.dumps({"error": ["MissingExtraError", "an engine", "none", "install it"]}), flush=True)
sys.stdin.readline()
"""


def worker(code: str) -> AbstractContextManager[Worker]:
    return start_worker([sys.executable, "-c", code], "'a.onnx' with some engine")


def assert_ended(process_id: int) -> None:
    with pytest.raises(ProcessLookupError):
        os.kill(process_id, 0)


def test_each_question_gets_its_answer_and_the_process_ends_with_the_block() -> None:
    with worker(ANSWERING) as one, worker(ANSWERING) as other:
        assert one.ask("load") == {"asked": {"ask": "load"}}
        assert other.ask("inference", queries=3) == {"asked": {"ask": "inference", "queries": 3}}
        assert one.ask("memory") == {"asked": {"ask": "memory"}}
    assert_ended(one.process_id)
    assert_ended(other.process_id)


def test_a_worker_that_dies_is_one_line_with_its_last_words() -> None:
    with pytest.raises(ModelError) as caught, worker(DYING) as dying:
        dying.ask("load")
    assert str(caught.value) == (
        "expected a model that can be measured: 'a.onnx' with some engine; got a process that ended with code 3 during "
        "'load' (no room for the weights); try this model with `agridistill predict`; it may need more memory than "
        "this machine has"
    )
    assert_ended(dying.process_id)


def test_a_worker_that_the_system_kills_is_reported_with_the_signal() -> None:
    with pytest.raises(ModelError, match="a process that was ended by SIGKILL during 'load'"), worker(KILLED) as killed:
        killed.ask("load")


def test_a_worker_that_is_dead_before_it_is_asked_is_reported() -> None:
    with worker("") as dead, pytest.raises(ModelError, match="ended with code 0 during"):
        dead.ask("load")


def test_a_workers_own_error_keeps_its_kind_and_words() -> None:
    with pytest.raises(MissingExtraError, match="expected an engine; got none; install it"), worker(REFUSING) as one:
        one.ask("load")


def test_no_process_is_left_after_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt), worker(HANGING) as hanging:
        raise KeyboardInterrupt
    assert_ended(hanging.process_id)


def test_a_program_that_is_not_there_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), start_worker([str(tmp_path / "python")], "a model"):
        pass
