"""A candidate's process: python child.py PEER.py, then one JSON object a line, asked and answered.

    asked {"op": "open", "settings": {...}}, answered {"facts": {...}}, then "prefill", "spread",
    "decode", "clear", "kv_bytes", "serve" with their arguments; an end of input ends the process.

An answer to what takes time has wall_s and cpu_s (of all threads), every answer has all_cpu_s,
which counts from the answer before, and an error is {"error": one line}. Runs with the
candidate's own Python, so it needs the standard library alone.

Contract of a peer's file: a class Peer, made with the settings (a dict), that has `facts` (dict:
version, weight_bytes, fans_out, note) and the methods

    prefill(prompts)   read prompts, lists of ids, into fresh state -> each row's next token
    spread(count)      (fans_out) make `count` rows of the one that was read
    decode(count)      -> [rows][count] greedy tokens, the first after the one prefill returned
    clear()            forget everything read
    kv_bytes()         bytes of K and V held, measured; None where the peer does not say
    serve(prompts, new_tokens, cap_tokens)   (optional) all requests under a cap of K and V
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.util
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_STATUS = Path("/proc/self/status")
_PR_SET_PDEATHSIG = 1
_TIMED = ("prefill", "decode", "serve")


def resident_bytes(key: str = "VmRSS") -> int:
    """Return the bytes of this process in memory; VmHWM: the most since `restart_peak`."""
    if _STATUS.exists():
        line = next(x for x in _STATUS.read_text().splitlines() if x.startswith(key))
        return int(line.split()[1]) * 1024
    scale = 1 if sys.platform == "darwin" else 1024  # the most so far, where nothing better is
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def restart_peak() -> None:
    """Give freed memory back and count the peak from now on, where that can be done."""
    gc.collect()
    with contextlib.suppress(OSError):  # not Linux
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def end_with_parent() -> None:
    """Ask the kernel to end this process when its parent dies: a stopped one would not notice."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def load_peer(path: str) -> Any:
    """Import a peer's file under a name that hides no package."""
    spec = importlib.util.spec_from_file_location("bench_peer", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"a peer must be a Python file, got {path!r}")
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_peer"] = module
    spec.loader.exec_module(module)
    return module.Peer


def timed(call: Callable[[], Any], *, has_memory: bool) -> dict[str, Any]:
    """Call, with wall and CPU seconds and, if asked for, memory before and at its peak."""
    if has_memory:
        restart_peak()
    before = resident_bytes()
    wall, cpu = time.perf_counter(), time.process_time()
    value = call()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    made = {"value": value, "wall_s": wall, "cpu_s": cpu}
    if has_memory:
        made |= {"before_bytes": before, "peak_bytes": resident_bytes("VmHWM")}
    return made


def answer(state: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """Do what is asked."""
    op = asked.pop("op")
    if op == "open":
        state["peer"] = state["Peer"](asked["settings"])
        return {"facts": state["peer"].facts}
    method = getattr(state["peer"], op)
    if op in _TIMED:
        return timed(lambda: method(**asked), has_memory=op != "decode")
    return {"value": method(**asked)}


def main() -> None:
    """Answer until the input ends. What libraries print goes to stderr."""
    end_with_parent()
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    sys.path = [x for x in sys.path if x != str(Path(__file__).parent)]
    state: dict[str, Any] = {}
    had_s = 0.0
    for line in sys.stdin:
        try:
            if "Peer" not in state:
                state["Peer"] = load_peer(sys.argv[1])
            made = answer(state, json.loads(line))
        except Exception as error:
            text = " ".join(str(error).split())[:300]
            made = {"error": f"{type(error).__name__}: {text}"}
        now_s = time.process_time()
        out.write(json.dumps(made | {"all_cpu_s": now_s - had_s}) + "\n")
        had_s = now_s


if __name__ == "__main__":
    main()
