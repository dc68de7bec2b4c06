"""What a study says: the answer in a few lines, the resolved configuration, how to read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvmmu.report.accelerator.names import (
    SCOPES,
    bytes_text,
    energy_text,
    mmu_term,
    plain,
    share_text,
    three_digits,
    time_text,
    times,
)
from kvmmu.report.accelerator.study import (
    accuracy_words,
    fitting_full,
    full_of,
    kv_traffic,
    ours_name,
    scopes_of,
)

__all__ = ["answer", "configuration", "notes", "setting", "title"]

Study = Mapping[str, Any]
_UNITS = {"nm": "nm", "v": "V", "mhz": "MHz", "gbps": "GB/s"}
_LABELS = {"dram_gbps": "dram peak"}


def title(study: Study) -> str:
    """Name the run in one line."""
    made = study["simulation"]["configuration"]
    return f"{made['model']} on {made['accelerator']} with a KV-MMU, simulated"


def setting(study: Study) -> str:
    """Say what was simulated, in one sentence."""
    made, labels = study["simulation"]["configuration"], study["labels"]
    run = f"{made['prompt']:,} + {made['generate']:,} tokens"
    if study["simulation"]["is_trace"]:
        tokens = f"{made['prompt']:,} prefill and {made['generate']:,} decode tokens"
        run = f"{labels['workload']}, {tokens}"
    return (
        f"{made['model']} on {made['accelerator']} ({made['node_nm']} nm, {made['array']} PEs, "
        f"{made['clock_mhz']:g} MHz) with {made['dram']} ({made['dram_gbps']:.1f} GB/s): "
        f"batch {made['batch']}, {run}, {made['num_slots']:,} slots, KV {made['bits']['kv']} bit, "
        f"{made['corner']} constants."
    )


def answer(study: Study) -> list[tuple[str, str]]:
    """Answer in a few labelled lines: what the paper claims, what binds, cost, bytes, KV-MMU."""
    full, paper = full_of(study), study["paper"]
    claim = f"{times(paper['energy'])} energy, {times(paper['delay'])} delay"
    where = f"{paper['node_nm']} nm, batch {paper['batch']}, its configuration not known"
    return [
        *_fitting(study, full),
        ("paper", f"{claim} (abstract; {where})"),
        ("accuracy", _accuracy(study)),
        ("cost", _cost(study)),
        ("bound by", _bound(study)),
        ("DRAM", _bytes(study, full)),
        ("KV-MMU", _mmu(study)),
        *_stalls(study),
    ]


def _fitting(study: Study, full: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Where the full cache does not fit, say so, and what the gain is over one that does."""
    if full is None or full["fits"]:
        return []
    room = bytes_text(study["simulation"]["configuration"]["dram_capacity_bytes"])
    words = f"{full['title']} needs {bytes_text(full['capacity_bytes'])} of {room}: "
    words += "its figures are as if it fitted"
    other = fitting_full(study)
    if other is None:
        return [("fits not", f"{words}; no full cache fits")]
    ratios = study["simulation"]["ratios"][other["name"]]
    parts = [
        f"{SCOPES[s]} {times(ratios[s]['overlapped']['energy'])} energy, "
        f"{times(ratios[s]['overlapped']['delay'])} delay"
        for s in scopes_of(study)
    ]
    return [("fits not", f"{words}; over {other['title']}, which fits: {'; '.join(parts)}")]


def _bound(study: Study) -> str:
    parts = []
    for name, part in study["simulation"]["ours"]["phases"].items():
        used = part["utilisation"]
        busy = f"DRAM {share_text(used['dram'])}, PEs {share_text(used['array'])} busy"
        parts.append(f"{plain(name)} by {part['bound']} ({busy})")
    balance = study["simulation"]["configuration"]["balance"]
    return f"{'; '.join(parts)}; PEs / (BW x B / f) {balance:.2f}"


def _cost(study: Study) -> str:
    made = study["simulation"]
    total = made["ours"]["total"]
    energy, delay = total["energy_j"]["overlapped"], total["delay_s"]["overlapped"]
    words = f"{time_text(delay)}, {energy_text(energy)}"
    decode = made["ours"]["phases"].get("decode")
    if decode:
        rate = decode["tokens"] / decode["delay_s"]["overlapped"]
        each = decode["energy_j"]["overlapped"] / decode["tokens"]
        words += f"; decode {three_digits(rate)} tokens/s, {energy_text(each)} a token"
    return f"{words}; {made['area_mm2']['total']:.2f} mm2"


def _bytes(study: Study, full: Mapping[str, Any] | None) -> str:
    made = study["simulation"]
    words = f"{bytes_text(sum(made['ours']['total']['dram_bytes'].values()))} moved"
    if full is not None:
        words += f", {full['title']} {bytes_text(sum(full['total']['dram_bytes'].values()))}"
    rates = made["reduction"]
    words += f"; (P+G)/C = {rates['compression']:.1f}x"
    if "decode_kv_bytes" in rates:
        words += f", K and V bytes read in decode {rates['decode_kv_bytes']:.2f}x fewer"
    for phase, (moved, least) in kv_traffic(study["bounds"]["rce"]).items():
        words += f"; K and V {phase} {bytes_text(moved)}, least {bytes_text(least)}"
    return words


def _mmu(study: Study) -> str:
    shares, paper = study["simulation"]["mmu_share"], study["paper"]
    part = shares["end_to_end"]
    terms = {k: v for k, v in part.items() if k not in ("tables", "with_collection") and v > 0}
    ranked = sorted(terms, key=lambda term: -terms[term])[:2]
    largest = " and ".join(mmu_term(term) for term in ranked)
    words = f"tables {share_text(part['tables'])} of energy"
    words += f", with score collection {share_text(part['with_collection'])}"
    words += f" (abstract: {share_text(paper['mmu_share'])})"
    return f"{words}; largest: {largest}" if largest else words


def _stalls(study: Study) -> list[tuple[str, str]]:
    """Say what the KV-MMU holds up of a decode step, and how many ways hold nothing up."""
    made = study.get("stalls")
    if not made:
        return []
    own = next(row for row in made["rows"] if row["ways"] == made["own_ways"])
    causes = [f"{name} {cycles:,}" for name, cycles in own["by_cause"].items() if cycles]
    words = f"{own['total']:,} of a decode step's {own['step_cycles']:,} cycles"
    words += f" at {own['ways']} ways" + (f" ({', '.join(causes)})" if causes else "")
    least = made["least_ways"]
    words += f"; least ways without any: {least}" if least else "; no number of ways has none"
    worst = own["rescale_cycles"]
    return [("stalls", f"{words}; {worst:,} more if every table were rescaled in one step")]


def _accuracy(study: Study) -> str:
    if study["accuracy"] is None:
        return "not measured with these numbers; every ratio stands without one"
    return accuracy_words(study).removeprefix("accuracy: ")


def configuration(study: Study) -> list[tuple[str, str]]:
    """List everything the figures depend on."""
    made = study["simulation"]["configuration"]
    flat: list[tuple[str, str]] = []
    for key, value in made.items():
        if key == "balance":
            flat.append(("PEs / (BW x B / f)", f"{value:.3g}"))
        elif isinstance(value, dict):
            is_kib, key = key.endswith("_kib"), key.removesuffix("_kib")
            text = ", ".join(f"{plain(str(k))} {v}{' KiB' * is_kib}" for k, v in value.items())
            flat.append((plain(key), text or "none"))
        else:
            flat.append(_measure(key, value))
    return flat


def _measure(key: str, value: Any) -> tuple[str, str]:
    """Take the unit off a key and put it behind the value."""
    name, _, suffix = key.rpartition("_")
    if suffix == "bytes":
        return plain(name), bytes_text(value)
    text = "none" if value is None else str(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        text = f"{value:,}" if value >= 10000 else f"{value:g}"
    unit = _UNITS.get(suffix)
    return (_LABELS.get(key, plain(name)), f"{text} {unit}") if unit else (plain(key), text)


def notes(study: Study) -> list[str]:
    """Say how the figures are to be read."""
    made = study["simulation"]
    own = [str(note) for note in made.get("notes", [])]
    return [
        *own,
        "Every figure is simulated: a model of the chip and a command-level model of the DRAM, "
        "with constants whose sources stand in the configuration files.",
        "Every design runs on the same chip, with the same batch, bits and overlap; a baseline "
        "may choose the prefill chunk with which it is fastest. Ratios are baseline / "
        f"{ours_name(study)}.",
        "Overlapped: DRAM, PEs, softmax and KV-MMU work at the same time as far as the buffers "
        "allow. Serial: one after the other. Which of the two a baseline is decides most of a "
        "delay ratio, so both are printed.",
        "The paper's abstract gives ratios but no configuration: agreement is one set of "
        "assumptions that leads there, not a reproduction.",
        "Least: every K and V row that a step uses crosses the pins once. The order of any "
        "schedule is FlashAttention's bound without its constant.",
        "Stalls: cycles by which a decode step of full lanes is longer than with a KV-MMU that "
        "takes any number of probabilities at once, has every table in place and searches in no "
        "time. "
        "The tables' bytes in DRAM and the second look at the logits are there in both.",
        "The KV-MMU with score collection counts what the run would save without scores: tables, "
        "the second look at every logit, and rows that wait until it is known who stays.",
    ]
