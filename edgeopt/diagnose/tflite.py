"""TFLite's layers, read and changed in the flatbuffer itself; see graph.py."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from ..formats import mapped
from ..formats.tflite import (
    GRAPH_INPUTS,
    GRAPH_OPERATORS,
    GRAPH_OUTPUTS,
    GRAPH_TENSORS,
    MODEL_BUFFERS,
    MODEL_GRAPHS,
    MODEL_OPCODES,
    TYPES,
    Table,
)
from ..task import Array
from .graph import WEIGHTED, Graph, Layer, Origins, Quantization, Weights

CUSTOM = 32
# Names of the schema's built-in operators by number; what came later keeps its number.
BUILTIN = """
    ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE EMBEDDING_LOOKUP FLOOR
    FULLY_CONNECTED HASHTABLE_LOOKUP L2_NORMALIZATION L2_POOL_2D LOCAL_RESPONSE_NORMALIZATION LOGISTIC
    LSH_PROJECTION LSTM MAX_POOL_2D MUL RELU RELU_N1_TO_1 RELU6 RESHAPE RESIZE_BILINEAR RNN SOFTMAX SPACE_TO_DEPTH
    SVDF TANH CONCAT_EMBEDDINGS SKIP_GRAM CALL CUSTOM EMBEDDING_LOOKUP_SPARSE PAD UNIDIRECTIONAL_SEQUENCE_RNN GATHER
    BATCH_TO_SPACE_ND SPACE_TO_BATCH_ND TRANSPOSE MEAN SUB DIV SQUEEZE UNIDIRECTIONAL_SEQUENCE_LSTM STRIDED_SLICE
    BIDIRECTIONAL_SEQUENCE_RNN EXP TOPK_V2 SPLIT LOG_SOFTMAX DELEGATE BIDIRECTIONAL_SEQUENCE_LSTM CAST PRELU MAXIMUM
    ARG_MAX MINIMUM LESS NEG PADV2 GREATER GREATER_EQUAL LESS_EQUAL SELECT SLICE SIN TRANSPOSE_CONV SPARSE_TO_DENSE
    TILE EXPAND_DIMS EQUAL NOT_EQUAL LOG SUM SQRT RSQRT SHAPE POW ARG_MIN FAKE_QUANT REDUCE_PROD REDUCE_MAX PACK
    LOGICAL_OR ONE_HOT LOGICAL_AND LOGICAL_NOT UNPACK REDUCE_MIN FLOOR_DIV REDUCE_ANY SQUARE ZEROS_LIKE FILL
    FLOOR_MOD RANGE RESIZE_NEAREST_NEIGHBOR LEAKY_RELU SQUARED_DIFFERENCE MIRROR_PAD ABS SPLIT_V UNIQUE CEIL
    REVERSE_V2 ADD_N GATHER_ND COS WHERE RANK ELU REVERSE_SEQUENCE MATRIX_DIAG QUANTIZE MATRIX_SET_DIAG ROUND
    HARD_SWISH IF WHILE NON_MAX_SUPPRESSION_V4 NON_MAX_SUPPRESSION_V5 SCATTER_ND SELECT_V2 DENSIFY SEGMENT_SUM
    BATCH_MATMUL PLACEHOLDER CUMSUM CALL_ONCE BROADCAST_TO RFFT2D CONV_3D IMAG REAL COMPLEX_ABS HASHTABLE
    HASHTABLE_FIND HASHTABLE_IMPORT HASHTABLE_SIZE REDUCE_ALL CONV_3D_TRANSPOSE VAR_HANDLE READ_VARIABLE
    ASSIGN_VARIABLE BROADCAST_ARGS RANDOM_STANDARD_NORMAL BUCKETIZE RANDOM_UNIFORM MULTINOMIAL GELU
"""
NAMES = BUILTIN.split()
NUMPY = {"float32", "float16", "int32", "uint8", "int64", "bool", "int16", "int8", "float64"}


class _Tensor:
    """quantization: SCALE, ZERO and AXIS are the schema's field numbers."""

    SCALE, ZERO, AXIS = 2, 3, 6

    def __init__(self, data: Any, table: Table, buffers: list[Table]) -> None:
        self.name, self.shape = table.text(3), table.numbers(0)
        kind = table.number(1, "<b")
        self.dtype = TYPES[kind] if 0 <= kind < len(TYPES) else "?"
        buffer = buffers[table.number(2, "<I")]
        first, count = buffer.vector(0, 1)
        self._content = bytes(data[first : first + count])
        self.is_constant = count > 0
        self.scales, self.zeros, self.axis = self._quantization(data, table.table(4))

    def _quantization(self, data: Any, told: Table | None) -> tuple[list[float], list[int], int]:
        if told is None:
            return [], [], 0
        place, count = told.vector(self.SCALE, 4)
        zero_place, zeros = told.vector(self.ZERO, 8)
        return (
            list(struct.unpack_from(f"<{count}f", data, place)),
            list(struct.unpack_from(f"<{zeros}q", data, zero_place)),
            told.number(self.AXIS, "<i"),
        )

    @property
    def quantization(self) -> Quantization | None:
        """Of a tensor with one scale; weights have one per channel."""
        if len(self.scales) != 1 or self.dtype not in ("int8", "uint8", "int16"):
            return None
        limits = np.iinfo(self.dtype)
        return Quantization(self.scales[0], self.zeros[0] if self.zeros else 0, int(limits.min), int(limits.max))

    def weights(self) -> Weights | None:
        if not self.is_constant or self.dtype not in NUMPY:
            return None
        stored: Array = np.frombuffer(self._content, self.dtype).reshape(self.shape)
        if not self.scales:
            return Weights(self.name, stored.astype(np.float64), None, self.dtype)
        shape = [1] * stored.ndim
        if len(self.scales) > 1:
            shape[self.axis] = len(self.scales)
        step = np.asarray(self.scales, np.float64).reshape(shape)
        zero = np.asarray(self.zeros or [0], np.float64).reshape(shape if len(self.zeros) > 1 else [1] * stored.ndim)
        return Weights(self.name, (stored - zero) * step, step, self.dtype)


def read(path: Path) -> Graph:
    with mapped(path) as data:
        model = Table(data, struct.unpack_from("<I", data)[0], [len(data)])
        buffers = list(model.tables(MODEL_BUFFERS))
        kinds = [_kind(code) for code in model.tables(MODEL_OPCODES)]
        graph = next(model.tables(MODEL_GRAPHS))
        tensors = [_Tensor(data, table, buffers) for table in graph.tables(GRAPH_TENSORS)]
        layers = _layers(graph, kinds, tensors)
        numbers = {layer.tensor: number for number, layer in enumerate(layers)}
        inputs = tuple(tensors[index].quantization for index in graph.numbers(GRAPH_INPUTS))
        outputs = tuple(numbers.get(index) for index in graph.numbers(GRAPH_OUTPUTS))
        return Graph("tflite", tuple(layers), outputs, inputs)


def _layers(graph: Table, kinds: list[str], tensors: list[_Tensor]) -> list[Layer]:
    origins, found = Origins(graph.numbers(GRAPH_INPUTS)), list[Layer]()
    for operator in graph.tables(GRAPH_OPERATORS):
        kind = kinds[operator.number(0, "<I")]
        taken = [index for index in operator.numbers(1) if index >= 0]
        given = operator.numbers(2)
        sources = origins.of(taken)
        origins.passed_on(given, taken)
        for index in given:
            own = tensors[index]
            if sources and own.shape and own.dtype in NUMPY:
                origins.watch(index, len(found))
                weights = tensors[taken[1]].weights() if kind in WEIGHTED and len(taken) > 1 else None
                found.append(
                    Layer(
                        index, own.name, own.name, kind, own.name, sources, own.quantization,
                        own.quantization is not None, weights,
                    )
                )  # fmt: skip
    return found


def _kind(code: Table) -> str:
    number = max(code.number(0, "<b"), code.number(3, "<i"))
    if number == CUSTOM:
        return code.text(1) or "CUSTOM"
    return NAMES[number] if number < len(NAMES) else f"operator {number}"


def watched(path: Path, graph: Graph, extra: list[Layer], folder: Path) -> list[Path]:  # noqa: ARG001
    """The list of outputs is written again behind the file's end, and the graph told to find it there."""
    content = bytearray(path.read_bytes())
    root = Table(content, struct.unpack_from("<I", content)[0], [len(content)])
    table = next(root.tables(MODEL_GRAPHS))
    place = table.place(GRAPH_OUTPUTS)
    outputs = [*table.numbers(GRAPH_OUTPUTS), *(int(layer.tensor) for layer in extra)]
    content += b"\0" * (-len(content) % 16)
    struct.pack_into("<I", content, place, len(content) - place)
    content += struct.pack(f"<I{len(outputs)}i", len(outputs), *outputs)
    content += b"\0" * (-len(content) % 16)
    out = folder / path.name
    out.write_bytes(content)
    return [out]


def halved(path: Path, graph: Graph, folder: Path) -> None:  # noqa: ARG001
    """No kernel of TFLite adds products in 16 bits."""
    return None
