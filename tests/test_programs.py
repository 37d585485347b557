"""How programs end: whatever happens, at whatever moment, in one line and with an exit code that says what it was."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from common.errors import UserError
from common.programs import goes_on, run_program
from tests.conftest import ROOT


class SafetensorError(Exception):
    """As safetensors calls it."""


class OutOfMemoryError(RuntimeError):
    """As torch calls it."""


@pytest.mark.parametrize("error, line", [
    (UserError("what was\nwrong"), "error: what was wrong"),
    (OSError(errno.ENOSPC, "No space left on device", "x/y"), "error: x/y: No space left on device: make room there, or "),
    (SafetensorError("I/O error"), "error: a file of tensors can't be read or written (SafetensorError: I/O error)"),
    (OutOfMemoryError("40 GiB"), "error: the device's memory does not suffice"), (MemoryError(), "error: the memory does not"),
    (RecursionError(), "error: something that was read is nested"), (OverflowError("int"), "error: a number is too large"),
])
def test_mistakes_and_machines(capsys, error, line):
    def failing():
        raise error

    with pytest.raises(SystemExit) as ended:
        run_program(failing)
    messages = capsys.readouterr().err
    assert ended.value.code == 2 and messages.startswith(line) and messages.count("\n") == 1


def test_defects_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run_program(lambda: 1 / 0)


@pytest.mark.parametrize("number, word, code", [(signal.SIGINT, "interrupted", 130), (signal.SIGTERM, "terminated", 143)])
def test_interruptions_say_how_to_go_on(capsys, number, word, code):
    before, put_in_order = signal.getsignal(signal.SIGTERM), []

    def working():
        try:
            with goes_on(lambda: "3 of 9 are done: the same command goes on"):
                os.kill(os.getpid(), number)
                time.sleep(5)
        finally:
            put_in_order.append(True)

    with pytest.raises(SystemExit) as ended:
        run_program(working)
    assert ended.value.code == code and put_in_order and signal.getsignal(signal.SIGTERM) == before
    assert capsys.readouterr().err == f"{word}; 3 of 9 are done: the same command goes on\n"


@pytest.mark.parametrize("number, word", [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_while_modules_are_imported(tmp_path, number, word):
    """A module that is slow to import stands in for torch."""
    (tmp_path / "torch.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(20)\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    program = subprocess.Popen([sys.executable, "-m", "experiments.evaluate", "--help"], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path)
    assert program.stdout.readline() == "importing\n"
    program.send_signal(number)
    assert program.communicate(timeout=10)[1] == f"{word}\n" and program.returncode == 128 + number


def test_a_package_that_is_not_installed(tmp_path):
    (tmp_path / "torch.py").write_text("import nowhere_to_be_found\n")
    done = subprocess.run([sys.executable, "-m", "experiments.evaluate", "--help"], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("error: No module named 'nowhere_to_be_found': install it")


def test_as_a_library_nothing_is_set():
    code = "import signal, sys; before = signal.getsignal(signal.SIGINT), sys.excepthook; import experiments; " \
           "assert before == (signal.getsignal(signal.SIGINT), sys.excepthook)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
