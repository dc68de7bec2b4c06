"""What `kvmmu generate` runs: one generation, watched, timed and described."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor

from kvmmu import trace as traces
from kvmmu.cli.progress import Bar, bar
from kvmmu.evals.settings import kv_nbytes
from kvmmu.hf.enable import enabled
from kvmmu.hf.lm import LM
from kvmmu.hf.record import masses_nbytes, record

__all__ = ["describe_run", "run"]


class _Watch:
    """Follow a generation: prefill by the model's calls, new tokens by generate()'s streamer.

    `put` and `end` are what generate() asks of a streamer.
    """

    def __init__(self, lm: LM, bar: Bar, max_new: int, write: Callable[[str], None] | None) -> None:
        self._lm, self._bar, self._write = lm, bar, write
        self._max_new = max_new
        self._ids: list[int] = []
        self._shown = ""
        self.num_new = -1  # the first put is the prompt
        self.began = self.first = self.ended = time.perf_counter()

    def before_call(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Count the tokens of a prefill call."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        if self.num_new < 1 and ids is not None:
            self._bar.advance(ids.shape[1])

    def put(self, value: Tensor) -> None:
        """Take the prompt first, then each new token."""
        self.num_new += 1
        if self.num_new == 0:
            return
        self.ended = time.perf_counter()
        if self.num_new == 1:
            self.first = self.ended
            if self._write:
                self._bar.hide()
            else:
                self._bar.restart("generating", self._max_new)
        self._bar.advance(1)
        self._ids += value.flatten().tolist()
        if self._write:
            self._show(self._write)

    def end(self) -> None:
        """Do nothing more."""

    def _show(self, write: Callable[[str], None]) -> None:
        """Write the text that the new tokens have completed."""
        text = self._lm.tokenizer.decode(self._ids, skip_special_tokens=True)
        if text.endswith("\ufffd"):
            return  # in the middle of a character
        write(text[len(self._shown) :])
        self._shown = text
        if text.endswith("\n"):
            self._ids, self._shown = [], ""


def run(
    lm: LM,
    prompt: str,
    *,
    model_name: str,
    max_new_tokens: int,
    sampling: dict[str, Any],
    trace: Path | None,
    masses: bool = False,
    write: Callable[[str], None] | None,
) -> dict[str, Any]:
    """Generate and return what there is to tell, as JSON values. Raises ValueError."""
    inputs = lm.encode(prompt)
    length = inputs["input_ids"].shape[1]
    cache = lm.make_cache(length + max_new_tokens)
    sampling = dict(sampling)
    torch.manual_seed(seed := sampling.pop("seed"))
    options = sampling | {"max_new_tokens": max_new_tokens, "return_dict_in_generate": True}
    with ExitStack() as stack:
        watch = _Watch(lm, stack.enter_context(bar("reading", length)), max_new_tokens, write)
        hook = lm.model.register_forward_pre_hook(watch.before_call, with_kwargs=True)
        stack.callback(hook.remove)
        if cache is not None:
            stack.enter_context(enabled(lm.model))
            options["past_key_values"] = cache
            options["prefill_chunk_size"] = cache.prefill_chunk_size
            if trace is not None:
                if masses:
                    size = masses_nbytes(cache, length, max_new_tokens=max_new_tokens)
                    typer.echo(f"masses: up to {_mega(size)} before compression", err=True)
                stack.enter_context(record(cache, trace, model_name=model_name, masses=masses))
        watch.began = time.perf_counter()
        model: Any = lm.model  # its class is annotated as if generate were a tensor
        out = model.generate(**inputs, **options, streamer=watch)
    ids = out.sequences[0, length:].tolist()
    eos = lm.model.generation_config.eos_token_id
    stops = eos if isinstance(eos, list) else [eos]
    done = {
        "text": lm.tokenizer.decode(ids, skip_special_tokens=True),
        "model": model_name,
        "prompt_tokens": length,
        "new_tokens": len(ids),
        "finish": "stop" if ids and ids[-1] in stops else "length",
        "seed": seed,
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "prefill_s": round(watch.first - watch.began, 4),
        "decode_s": round(watch.ended - watch.first, 4),
        "tokens_per_s": _rate(len(ids) - 1, watch.ended - watch.first),
    }
    done["cache"] = _describe_cache(lm, cache, out.past_key_values, length + len(ids) - 1)
    if trace is not None:
        written = traces.read(trace)
        done["trace"] = {"path": str(trace), "bytes": trace.stat().st_size}
        done["trace"] |= traces.summary(written).to_json()
        if masses:
            done["trace"]["agreement"] = traces.agreement(written).to_json()
    return done


def _rate(count: int, seconds: float) -> float | None:
    """Tokens per second; None where one token alone was generated."""
    return round(count / seconds, 1) if count > 0 and seconds > 0 else None


def _describe_cache(lm: LM, cache: Any, held: Any, num_tokens: int) -> dict[str, Any]:
    """Say what the cache was and what it took; full_kv_bytes is that of a full one, reckoned."""
    if cache is None:
        return {"mode": "full", "kv_bytes": kv_nbytes(held), "num_tokens": num_tokens}
    options = cache.options
    return {
        "mode": "slots",
        "policy": {"name": cache.policy.name} | cache.policy.params(),
        "num_slots": cache.num_slots,
        "num_sinks": options.num_sinks,
        "window": options.window,
        "granularity": options.granularity,
        "positions": options.positions,
        "chunk_size": options.chunk_size,
        "num_tokens": num_tokens,
        "evicted": int(cache.num_evicted.max()),
        "kv_bytes": cache.kv_nbytes,
        "nbytes": cache.nbytes,
        "workspace_bytes": cache.workspace_nbytes,
        "full_kv_bytes": cache.geometry.full_kv_bytes(num_tokens),
    }


def describe_run(done: dict[str, Any]) -> str:
    """Word the figures of a run in one line, and those of its trace in a second."""
    cache, rate = done["cache"], done["tokens_per_s"]
    words = [f"{done['prompt_tokens']:,} + {done['new_tokens']:,} tokens"]
    if cache["mode"] == "full":
        words.append(f"full cache, KV {_mega(cache['kv_bytes'])}")
    else:
        words.append(f"{cache['policy']['name']}, {cache['num_slots']:,} slots")
        share = cache["full_kv_bytes"] / cache["kv_bytes"]
        words.append(
            f"KV {_mega(cache['kv_bytes'])} (full: {_mega(cache['full_kv_bytes'])}, {share:.1f}x)"
        )
        words.append(f"{cache['evicted']:,} evicted")
    words.append(f"first token {done['prefill_s']:.2f} s")
    if rate is not None:
        words.append(f"then {rate:,.0f} tokens/s")
    line = "; ".join(words)
    return line + (f"\n{_describe_trace(done['trace'])}" if "trace" in done else "")


def _describe_trace(made: dict[str, Any]) -> str:
    stay = made["residence_median"]
    stayed = "" if stay is None else f", an evicted token had stayed {stay:,} tokens (median)"
    line = (
        f"trace {made['path']}: {made['tokens']:,} tokens, {made['evictions']:,} evictions"
        f"{stayed}, {_mega(made['bytes_read'])} read, {_mega(made['bytes_written'])} written"
    )
    agreed = made.get("agreement", {})
    if not agreed.get("evictions"):
        return line
    return (
        f"{line}\nfp32 scores of the same masses would choose {agreed['rate']:.2%} of the "
        f"{agreed['evictions']:,} victims in decode, {agreed['rate_or_tied']:.2%} but for ties"
    )


def _mega(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.2f} MB"
