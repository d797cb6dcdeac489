"""Runtimes started with the settings that measure and ship alike. Imports no torch: it would count as their memory."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnxruntime
    import openvino


def start_onnx(content: Path | bytes, threads: int) -> onnxruntime.InferenceSession:
    """Return a graph, or the one of a file, ready to run on the CPU; onnxruntime raises its own exceptions."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only; they are raised as exceptions besides
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


@cache
def open_openvino() -> openvino.Core:
    """Return this process's only engine of OpenVINO: see ``signal_stack`` for what several do to each other."""
    import openvino

    return openvino.Core()


def compile_openvino(graph: openvino.Model | Path, threads: int) -> openvino.CompiledModel:
    """Return a graph, or the one of a file, ready to run on the CPU; OpenVINO raises its own exceptions."""
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",  # newer processors would take bfloat16 and answer otherwise
    }
    return open_openvino().compile_model(graph, "CPU", settings)
