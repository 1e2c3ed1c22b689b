"""The operators that int8 leaves in float because an output joins channels of unlike sizes in them.

One int8 tensor has one step. Where a detector's head joins boxes up to 640 with scores up to 1, that step is larger
than every score. With the join in float, each branch keeps a range of its own; where the branches are unlike in
themselves, or nothing is joined, the operator that computes them stays in float, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edgeopt import fidelity

Array = np.ndarray[Any, np.dtype[Any]]
N = TypeVar("N")

JOINS = {"Concat", "CONCATENATION", "PACK"}
MOVES = {
    *("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice", "StridedSlice", "Split"),
    *("VariadicSplit", "RESHAPE", "TRANSPOSE", "SQUEEZE", "EXPAND_DIMS", "SLICE", "STRIDED_SLICE", "SPLIT", "SPLIT_V"),
}
# Applied to each number alone, as biases and activations are: what they are given is as unlike as what they give.
EACH = {
    *("Add", "Sub", "Mul", "Div", "Subtract", "Multiply", "Divide", "Clip", "Clamp", "Relu", "Sigmoid", "Tanh", "Exp"),
    *("ADD", "SUB", "MUL", "DIV", "RELU", "LOGISTIC", "TANH", "EXP"),
}


def unlike(reference: Sequence[Array]) -> list[int]:
    """The numbers of the outputs, each (n, ...), whose channels differ in size by orders."""
    return [number for number, array in enumerate(reference) if fidelity.groups(array)]


def attempts(find: Callable[[list[int], bool], list[str]], reference: Sequence[Array]) -> Iterator[list[str]]:
    """Names of operators to leave in float, one list after another, each until its artifact is good enough; find: as
    the functions below, of the model at hand."""
    outputs = unlike(reference)
    joined = find(outputs, False) if outputs else []
    yield joined
    if joined and (all_of_them := find(outputs, True)) != joined:
        yield all_of_them


def in_onnx(path: Path, outputs: Sequence[int], heads: bool) -> list[str]:
    """Of an .onnx file, whose nodes without a name get one, in the file."""
    import onnx

    model = onnx.load(str(path))
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{number}_of_{node.output[0]}"
    onnx.save(model, str(path))
    makers = {name: node for node in model.graph.node for name in node.output if node.op_type != "Constant"}
    names = [model.graph.output[number].name for number in outputs]
    ends = [makers[name] for name in names if name in makers]
    found = _between(
        ends, lambda node: node.op_type, lambda node: [makers[name] for name in node.input if name in makers], heads
    )
    return list(dict.fromkeys(node.name for node in found))


def in_openvino(model: Any, outputs: Sequence[int], heads: bool) -> list[str]:
    """Of OpenVINO's model in memory."""
    ends = [model.outputs[number].get_node().input_value(0).get_node() for number in outputs]
    found = _between(
        [end for end in ends if not _is_given(end)],
        lambda node: str(node.get_type_name()),
        lambda node: [value.get_node() for value in node.input_values() if not _is_given(value.get_node())],
        heads,
    )
    return list(dict.fromkeys(str(node.get_friendly_name()) for node in found))


def _is_given(node: Any) -> bool:
    return node.get_type_name() in ("Parameter", "Constant")


def in_tflite(content: bytes, outputs: Sequence[int], heads: bool) -> list[str]:
    """Of a .tflite, by the names of the tensors that the operators make."""
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    graph = model.subgraphs[0]
    makers = {int(index): op for op in graph.operators for index in op.outputs}
    found = _between(
        [makers[place] for place in (int(graph.outputs[number]) for number in outputs) if place in makers],
        lambda op: str(flatbuffer_utils.opcode_to_name(model, op.opcodeIndex)),
        lambda op: [makers[int(index)] for index in op.inputs if int(index) in makers],
        heads,
    )
    return list(dict.fromkeys(graph.tensors[op.outputs[0]].name.decode("utf-8") for op in found))


def _between(ends: Sequence[N], kind: Callable[[N], str], above: Callable[[N], list[N]], heads: bool) -> list[N]:
    """From operators that make outputs up to the joins, with those between that only move numbers; with heads, up to
    the operators that compute what is joined. Where nothing is joined, these in any case."""
    joined, computed = list[N](), list[N]()
    pending: list[tuple[N, list[N]]] = [(end, []) for end in ends]
    seen = set[int]()
    while pending:
        node, moves = pending.pop(0)
        if id(node) in seen:
            continue
        seen.add(id(node))
        if kind(node) in JOINS:
            joined += [*moves, node]
            pending += [(own, []) for own in above(node)]
        elif kind(node) in MOVES and above(node):
            pending.append((above(node)[0], [*moves, node]))
        else:
            computed += [*moves, node]
            if kind(node) in EACH and len(above(node)) == 1:
                pending += [(above(node)[0], [])]
    return joined + computed if heads or not joined else joined
