"""A candidate's child process: asked in JSON lines, stopped while others have their turns."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import kvmmu.evals.bench.peers as peers
from kvmmu.errors import KVMMUError

__all__ = ["Child", "ChildError"]

_CHILD = Path(peers.__file__).parent / "child.py"


class ChildError(KVMMUError):
    """A candidate said what went wrong, ended, or took too long; the message is one line."""


class Child:
    """A running candidate. Ask it, pause it, close it."""

    def __init__(
        self, python: str, file: Path, log: Path, *, threads: int, limit_s: float = 1800
    ) -> None:
        """Start it; what it prints goes to the log."""
        self.limit_s = limit_s
        self._log_path = log
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log.open("wb")
        env = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        env |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [python, str(_CHILD), str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=env,
            start_new_session=True,
        )
        self._is_paused = False
        self._rest = b""

    def ask(self, op: str, **asked: Any) -> dict[str, Any]:
        """Ask and wait for the answer; the child runs meanwhile and is paused after.

        Raises ChildError if it answers with an error, ends, or takes longer than limit_s.
        """
        self.resume()
        line = json.dumps({"op": op, **asked}).encode() + b"\n"
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(line)
            self._process.stdin.flush()
            made: dict[str, Any] = json.loads(self._read_line())
        except (BrokenPipeError, ValueError) as error:
            raise ChildError(self._last_words()) from error
        self.pause()
        if "error" in made:
            raise ChildError(made["error"])
        return made

    def _read_line(self) -> bytes:
        assert self._process.stdout is not None
        end = time.monotonic() + self.limit_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                if not selector.select(max(0.0, end - time.monotonic())):
                    raise ChildError(f"took longer than {self.limit_s:.0f} s")
                part = os.read(self._process.stdout.fileno(), 1 << 20)
                if not part:
                    raise ChildError(self._last_words())
                self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _last_words(self) -> str:
        """Say how the child ended: its signal or the last line of its log."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        code = self._process.returncode
        if code is not None and code < 0:
            more = " (out of memory?)" if code == -signal.SIGKILL else ""
            return f"the process was ended by signal {-code}{more}"
        lines = self._log_path.read_text(errors="replace").strip().splitlines()
        return (lines[-1] if lines else f"the process ended with code {code}")[:300]

    def pause(self) -> None:
        """Stop the process: spinning threads of an idle one would take others' CPU."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, which: signal.Signals) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, which)

    def close(self) -> None:
        """End the process."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def __enter__(self) -> Child:
        """Enter a with statement."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()
