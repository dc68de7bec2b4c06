"""bench_cpu_paths.py's candidates on OpenVINO: graphs between attentions, and a stateful one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import openvino as ov
import torch
from openvino import opset13 as op
from openvino.op.util import Variable, VariableInfo

__all__ = ["segments", "stateful", "whole"]

PRECISION = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}


class Builder:
    """Makes OpenVINO nodes of one model of `bench_cpu_paths`."""

    def __init__(self, model: Any) -> None:
        self.model, self.kept = model, []

    def linear(self, x: Any, name: str, layer: int | None = None) -> Any:
        """x W^T; int8 weights are scaled in the graph, which the plugin knows."""
        matrix = self.model.matrix(name, layer)
        if self.model.form == "int8":
            codes = op.convert(op.constant(matrix.weight.numpy()), np.float32)
            weight = op.multiply(codes, op.constant(matrix.scales[:, None].numpy()))
        else:
            dense = matrix.weight.float().numpy()
            self.kept.append(dense)
            weight = op.constant(dense, shared_memory=True)
        return op.matmul(x, weight, False, True)

    def norm(self, x: Any) -> Any:
        """RMS norm with weights of one."""
        mean = op.reduce_mean(op.multiply(x, x), op.constant(np.array([-1])), keep_dims=True)
        scale = op.sqrt(op.add(mean, op.constant(np.float32(1e-5))))
        return op.divide(x, scale)

    def finish(self, x: Any, attended: Any, layer: int) -> Any:
        """Output product and MLP, with residuals."""
        x = op.add(x, self.linear(attended, "out", layer))
        up = op.split(self.linear(self.norm(x), "up", layer), op.constant(1), 2)
        hidden = op.multiply(op.swish(up.output(0)), up.output(1))
        return op.add(x, self.linear(hidden, "down", layer))


def _compile(model: ov.Model, form: str, threads: int) -> Any:
    config = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": PRECISION[form],
    }
    return ov.Core().compile_model(model, "CPU", config).create_infer_request()


def _infer(request: Any, inputs: list[np.ndarray]) -> list[np.ndarray]:
    request.infer(inputs, share_inputs=True, share_outputs=True)
    return [request.get_output_tensor(i).data for i in range(len(request.model_outputs))]


def segments(model: Any, threads: int, attend: Callable[[int, torch.Tensor], torch.Tensor]) -> Any:
    """One graph before, between and after the attentions, which run outside."""
    requests = []
    s = model.sizes
    for layer in range(s.layers + 1):
        build = Builder(model)
        x = op.parameter([-1, s.hidden], np.float32)
        inputs, y = [x], x
        if layer:
            inputs.append(op.parameter([-1, s.heads * s.head_dim], np.float32))
            y = build.finish(x, inputs[1], layer - 1)
        normed = build.norm(y)
        last = layer == s.layers
        made = build.linear(normed, "head") if last else build.linear(normed, "qkv", layer)
        outputs = [op.result(made)] if last else [op.result(y), op.result(made)]
        requests.append(_compile(ov.Model(outputs, inputs, f"s{layer}"), model.form, threads))

    def step(x: np.ndarray) -> np.ndarray:
        y, qkv = _infer(requests[0], [x])
        for layer in range(s.layers):
            attended = attend(layer, torch.from_numpy(qkv)).numpy()
            found = _infer(requests[layer + 1], [y, attended])
            y, qkv = found[0], found[-1]
        return qkv

    return step


def whole(model: Any, threads: int) -> Any:
    """All products in one graph, the queries standing in for the attention's output."""
    s, build = model.sizes, Builder(model)
    x = op.parameter([-1, s.hidden], np.float32)
    y = x
    for layer in range(s.layers):
        qkv = build.linear(build.norm(y), "qkv", layer)
        y = build.finish(y, _columns(qkv, 0, s.heads * s.head_dim), layer)
    out = op.result(build.linear(build.norm(y), "head"))
    request = _compile(ov.Model([out], [x], "whole"), model.form, threads)
    request.kept = build.kept
    return lambda x: _infer(request, [x])[0]


def _columns(x: Any, start: int, stop: int) -> Any:
    axis, one = op.constant(np.array([1])), op.constant(np.array([1]))
    return op.slice(x, op.constant(np.array([start])), op.constant(np.array([stop])), one, axis)


class State:
    """One tensor that a graph keeps between inferences."""

    def __init__(self, name: str, initial: np.ndarray, sinks: list[Any]) -> None:
        kind = ov.Type(initial.dtype)
        info = VariableInfo()
        info.data_shape, info.data_type = ov.PartialShape(list(initial.shape)), kind
        info.variable_id = name
        self.variable, self.sinks = Variable(info), sinks
        self.value = op.read_value(op.constant(initial), self.variable)

    def assign(self, value: Any) -> None:
        """Keep a value for the next inference."""
        self.sinks.append(op.assign(value, self.variable))


def stateful(model: Any, threads: int, batch: int, num_slots: int) -> Any:
    """The whole decode step in one graph: K, V and scores as state, the least score leaves.

    Sinks, window and decay are left out, which favours this candidate.
    """
    s, build, sinks = model.sizes, Builder(model), []
    rng = np.random.default_rng(0)
    x = op.parameter([batch, s.hidden], np.float32)
    y = x
    for layer in range(s.layers):
        qkv = build.linear(build.norm(y), "qkv", layer)
        attended = _slots(qkv, layer, s, batch, num_slots, rng, sinks)
        y = build.finish(y, attended, layer)
    out = op.result(build.linear(build.norm(y), "head"))
    request = _compile(ov.Model([out], sinks, [x], "stateful"), model.form, threads)
    request.kept = build.kept
    return lambda x: _infer(request, [x])[0]


def _slots(
    qkv: Any, layer: int, s: Any, B: int, C: int, rng: np.random.Generator, sinks: list[Any]
) -> Any:
    """Replace, attend, score and find the next victim of one layer. -> [B, Hq D]."""
    H, G, D = s.kv_heads, s.heads // s.kv_heads, s.head_dim
    q = op.reshape(_columns(qkv, 0, H * G * D), op.constant(np.array([B, H, G, D])), False)
    new = {}
    for i, name in enumerate(("k", "v")):
        first = (s.heads + i * H) * D
        row = _columns(qkv, first, first + H * D)
        new[name] = op.reshape(row, op.constant(np.array([B, H, 1, D])), False)
    slot = State(f"slot{layer}", np.zeros((B, H, 1, 1), np.int32), sinks)
    index = op.broadcast(slot.value, op.constant(np.array([B, H, 1, D])))
    held = {}
    for name in ("k", "v"):
        start = rng.standard_normal((B, H, C, D), np.float32)
        state = State(f"{name}{layer}", start, sinks)
        held[name] = op.scatter_elements_update(
            state.value, index, new[name], op.constant(np.int32(2))
        )
        state.assign(held[name])
    logits = op.multiply(op.matmul(q, held["k"], False, True), op.constant(np.float32(D**-0.5)))
    p = op.softmax(logits, 3)  # [B,H,G,C]
    scores = State(f"scores{layer}", rng.random((B, H, C), np.float32), sinks)
    zero = op.constant(np.zeros((B, H, 1), np.float32))
    at = op.squeeze(slot.value, op.constant(np.array([3])))
    kept = op.scatter_elements_update(scores.value, at, zero, op.constant(np.int32(2)))
    total = op.add(kept, op.reduce_sum(p, op.constant(np.array([2]))))
    scores.assign(total)
    least = op.topk(total, op.constant(np.int32(1)), 2, "min", "none")
    slot.assign(op.unsqueeze(least.output(1), op.constant(np.array([3]))))
    return op.reshape(op.matmul(p, held["v"], False, False), op.constant(np.array([B, -1])), False)
