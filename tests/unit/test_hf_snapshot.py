"""Save and load: a cache comes back whole and goes on alike; any other file is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import ours, prompt, shared
from torch import Tensor

import kvmmu
from kvmmu import H2O, RCE, TOVA, IntegrityError, SlotCache, SnapKV


def _used(name: str = "llama", **parts: Any) -> tuple[SlotCache, Tensor, Tensor]:
    """Return an evicting cache after a generation, and the ids and mask it has seen."""
    ids, mask = prompt(20)
    cache = SlotCache(12, num_sinks=2, **parts)
    out = ours(shared(name), cache, ids, attention_mask=mask, max_new_tokens=10).sequences
    return cache, out, torch.cat([mask, torch.ones(3, 10, dtype=mask.dtype)], dim=1)


def _assert_goes_on_alike(
    cache: SlotCache, path: Path, ids: Tensor, mask: Tensor, name: str = "llama"
) -> None:
    cache.save(path)
    loaded = SlotCache.load(path)
    assert loaded.policy.params() == cache.policy.params()
    assert replace(loaded.options, policy=cache.policy) == cache.options
    assert loaded.nbytes == cache.nbytes
    assert loaded.get_seq_length() == cache.get_seq_length()
    for key, tensor in cache.named_tensors().items():
        assert torch.equal(tensor, loaded.named_tensors()[key]), key
    a, b = (
        ours(shared(name), one, ids, attention_mask=mask, max_new_tokens=6)
        for one in (cache, loaded)
    )
    assert torch.equal(a.sequences, b.sequences)
    for key, tensor in cache.named_tensors().items():
        assert torch.equal(tensor, loaded.named_tensors()[key]), key


@pytest.mark.parametrize("policy", kvmmu.list_policies())
def test_every_policy_goes_on_alike(policy: str, tmp_path: Path) -> None:
    cache, ids, mask = _used(policy=policy)
    _assert_goes_on_alike(cache, tmp_path / "cache.safetensors", ids, mask)


@pytest.mark.parametrize(
    "parts",
    [
        {"policy": RCE(decay=0.9)},
        {"policy": SnapKV(then=TOVA(), kernel_size=3)},
        {"policy": SnapKV(then=RCE(decay=0.9), pooling="max")},
        {"policy": SnapKV(then=H2O()), "positions": "in_cache"},
        {"positions": "in_cache"},
        {"granularity": "layer", "window": 3},
        {"chunk_size": 5},
        {"kernel": "reference"},
        {"allow_extrapolation": True},
    ],
    ids=str,
)
def test_all_settings_come_back(parts: dict[str, Any], tmp_path: Path) -> None:
    cache, ids, mask = _used(**parts)
    _assert_goes_on_alike(cache, tmp_path / "cache.safetensors", ids, mask)


def test_sliding_window_layers_come_back(tmp_path: Path) -> None:
    cache, ids, mask = _used("gemma2")
    _assert_goes_on_alike(cache, tmp_path / "cache.safetensors", ids, mask, "gemma2")


def test_a_cache_after_beam_search_comes_back(tmp_path: Path) -> None:
    ids, _ = prompt(20, pads=(0,))
    cache = SlotCache(12)
    ours(shared("llama"), cache, ids, num_beams=3, max_new_tokens=6)
    cache.save(tmp_path / "cache.safetensors")
    loaded = SlotCache.load(tmp_path / "cache.safetensors")
    assert loaded.batch == 3
    assert torch.equal(loaded.positions(1), cache.positions(1))


def test_max_bytes_comes_back_as_slots(tmp_path: Path) -> None:
    cache = SlotCache.for_model(shared("llama"), max_bytes=20 * 512)
    cache.save(tmp_path / "cache.safetensors")
    assert SlotCache.load(tmp_path / "cache.safetensors").num_slots == 20


def _saved(folder: Path) -> Path:
    path = folder / "cache.safetensors"
    _used()[0].save(path)
    return path


@pytest.mark.parametrize("keep", [0, 7, 100, 2000, -1])
def test_a_cut_file_is_refused(keep: int, tmp_path: Path) -> None:
    path = _saved(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(IntegrityError, match="must be a whole safetensors file"):
        SlotCache.load(path)


def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cache.safetensors"
    path.write_text("It was on a dreary night of November" * 40)
    with pytest.raises(IntegrityError, match="must be a whole safetensors file"):
        SlotCache.load(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="missing"):
        SlotCache.load(tmp_path / "missing.safetensors")


def test_other_tensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(IntegrityError, match="must be a saved SlotCache, got other tensors"):
        SlotCache.load(path)


def _note(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def test_a_file_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    path = _saved(tmp_path)
    note, tensors = _note(path), load_file(path)
    del tensors["layers.1.table.scores"]
    save_file(tensors, path, metadata=note)
    with pytest.raises(IntegrityError, match="must hold a SlotCache's tensors, got others"):
        SlotCache.load(path)


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    path = _saved(tmp_path)
    note, tensors = _note(path), load_file(path)
    tensors["layers.1.table.scores"] = tensors["layers.1.table.scores"][:, :, :5].clone()
    save_file(tensors, path, metadata=note)
    with pytest.raises(IntegrityError, match=r"layers.1.table.scores must be \[3, 2, 12\]"):
        SlotCache.load(path)


@pytest.mark.parametrize("damage", ["version", "policy", "json"])
def test_a_note_that_cannot_be_read_is_refused(damage: str, tmp_path: Path) -> None:
    path = _saved(tmp_path)
    note, tensors = _note(path), load_file(path)
    (key, text), *_ = note.items()
    changed = {
        "version": text.replace('"version": 1', '"version": 99'),
        "policy": text.replace('"rce"', '"policy_of_tomorrow"'),
        "json": text[:50],
    }[damage]
    assert changed != text
    save_file(tensors, path, metadata={key: changed})
    with pytest.raises((IntegrityError, ValueError)) as caught:
        SlotCache.load(path)
    assert {"version": "99", "policy": "policy_of_tomorrow", "json": "note"}[damage] in str(
        caught.value
    )


def test_a_note_that_lacks_something_or_says_too_much_is_damaged(tmp_path: Path) -> None:
    path = _saved(tmp_path)
    (key, text), *_ = _note(path).items()
    tensors = load_file(path)

    def damaged(change: Callable[[dict[str, Any]], object]) -> None:
        note = json.loads(text)
        change(note)
        save_file(tensors, path, metadata={key: json.dumps(note)})
        with pytest.raises(IntegrityError, match="got a damaged one") as caught:
            SlotCache.load(path)
        assert "\n" not in str(caught.value)

    damaged(lambda note: note.pop("options"))
    damaged(lambda note: note.pop("shape"))
    damaged(lambda note: note["options"]["policy"].update(extra=1))
    damaged(lambda note: note["options"]["policy"].update(decay="a"))
    damaged(lambda note: note["options"].update(num_slots="12"))
    damaged(lambda note: note["shape"].update(dtype="none"))
    damaged(lambda note: note.update(batch="3"))
    damaged(lambda note: note.update(options=None))


def test_a_folder_is_not_saved_to(tmp_path: Path) -> None:
    cache = SlotCache.load(_saved(tmp_path))
    with pytest.raises(ValueError, match="path must be a file, got the folder"):
        cache.save(tmp_path)


def test_an_unbound_cache_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="must be bound and between two forwards"):
        SlotCache(12).save(tmp_path / "cache.safetensors")


def test_a_loaded_cache_of_another_model_is_refused(tmp_path: Path) -> None:
    path = _saved(tmp_path)
    ids, mask = prompt(31)
    cache = SlotCache.load(path)
    with pytest.raises(Exception, match="must"):
        ours(shared("llama_1_to_1"), cache, ids, attention_mask=mask)
