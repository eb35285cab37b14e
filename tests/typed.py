"""Types commands into an interactive shell on a separate terminal, like a person.

Job control is on, so this finds what only a user at a terminal meets: a background process group
that touches the terminal is stopped.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.kill_world import environment

CTRL_C = "\x03"
_PROMPT = "typed here> "
_CONTROL = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\x07")


class Shell:
    """An interactive bash, the leader of a session on a pseudo-terminal."""

    def __init__(self, columns: int = 120, **variables: str) -> None:
        self._seen = b""
        self._found = 0
        self.holders: dict[int, str] = {}
        """Processes other than the typed command that had the terminal as standard input."""
        self.commands: set[str] = set()
        """All processes seen, except the shell and the typed command."""
        self._suspects: dict[int, str] = {}
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            os.execvpe(
                "bash",
                ["bash", "--norc", "--noprofile", "-i"],
                environment(TERM="xterm-256color", PS1=_PROMPT, HISTFILE="", **variables),
            )
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self.wait_for(re.escape(_PROMPT), 60)
        self._place = Path(f"/proc/{self._pid}/fd/0").readlink()

    def __enter__(self) -> Shell:
        return self

    def __exit__(self, *details: object) -> None:
        ours = self._processes()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGHUP)
        os.close(self._terminal)
        for pid in ours:  # stopped ones don't receive SIGHUP
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def run(self, command: str, seconds: float) -> tuple[int, str]:
        """Types the command; returns its exit status, and what the screen showed meanwhile."""
        begin = len(self._seen)
        self.begin(command)
        return self.end(seconds), self.screen(begin)

    def begin(self, command: str) -> None:
        self.press(f"{command}; printf 'ended:%d:\\n' $?\n")

    def end(self, seconds: float) -> int:
        return int(self.wait_for(r"ended:(\d+):\r", seconds)[1])

    def press(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def screen(self, begin: int = 0) -> str:
        return _CONTROL.sub(b"", self._seen[begin:]).decode(errors="replace").replace("\r\n", "\n")

    def wait_for(self, pattern: str, seconds: float) -> re.Match[bytes]:
        """Reads until the pattern appears; each occurrence is found once."""
        deadline = time.monotonic() + seconds
        wanted = re.compile(pattern.encode())
        while (found := wanted.search(self._seen, self._found)) is None:
            self._read(deadline, pattern)
        self._found = found.end()
        return found

    def until(self, is_so: Callable[[], object], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():
            self._read(deadline, "what was waited for")

    def _read(self, deadline: float, awaited: str) -> None:
        if time.monotonic() > deadline:
            states = "\n".join(self._processes().values())
            raise AssertionError(
                f"{awaited!r} did not come in time; the screen:\n"
                f"{self.screen()[-4000:]}\nand the processes:\n{states}"
            )
        if select.select([self._terminal], [], [], 0.2)[0]:
            self._seen += os.read(self._terminal, 65536)
        self._look()

    def _look(self) -> None:
        """Records who holds the terminal; once proves nothing, because it may be about to start a
        program."""
        holding = {}
        for pid, told in self._processes().items():
            if str(self._pid) in told.split()[:2]:
                continue  # the shell, and the typed command
            self.commands.add(told.split(" ", 3)[3].strip())
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/fd/0").readlink() == self._place:
                    holding[pid] = told
        self.holders |= {pid: told for pid, told in holding.items() if pid in self._suspects}
        self._suspects = holding

    def _processes(self) -> dict[int, str]:
        """Processes of the shell's session: number, parent, state and command."""
        found = {}
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                state, parent, _, session = (
                    (place / "stat").read_text().rpartition(")")[2].split()[:4]
                )
                if int(session) == self._pid and state not in "ZX":
                    words = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    found[int(place.name)] = f"{place.name} {parent} {state} {words[:200]} "
        return found
