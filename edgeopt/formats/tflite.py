"""TFLite: a flatbuffer with the identifier TFL3 (schema: tensorflow/compiler/mlir/lite/schema/schema.fbs)."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgeopt_agent import preprocess

from . import Contents, Fed, Operator, Port, mapped, release

KIND = "TFLite model"
FED = "edgeopt.inputs"  # the metadata in which a conversion of ours says what the inputs were in the source
ETHOS_U = "ethos-u"  # the custom operator that Vela packs an NPU's part of a model into

# The schema's numbers. Fields of a table by their index in it.
MODEL_OPCODES, MODEL_GRAPHS, MODEL_BUFFERS, MODEL_METADATA = 1, 2, 4, 6
GRAPH_TENSORS, GRAPH_INPUTS, GRAPH_OUTPUTS, GRAPH_OPERATORS = 0, 1, 2, 3
CUSTOM = 32
TYPES = (
    *("float32", "float16", "int32", "uint8", "int64", "string", "bool", "int16", "complex64", "int8", "float64"),
    *("complex128", "uint64", "resource", "variant", "uint32", "uint16", "int4", "bfloat16", "int2", "uint4"),
)
# Numbers of built-in operators, tried one by one: the last that tflite-runtime 2.14 (its last) knows; the last of
# ai-edge-litert 2.3, and those below it that it has no kernel for (most of StableHLO's).
LAST_OF_TFLITE_RUNTIME, LAST_OF_LITERT = 161, 209
ABSENT_OF_LITERT = {162, 164, *range(167, 176), *range(177, 181), *range(182, 190), *range(191, 195), 196, 197, 199}
ABSENT_OF_LITERT |= {200, 202, 208}
NEWEST_KNOWN = (2, 3)
# Names of the schema's built-in operators by number, but StableHLO's, which came later.
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
NAMES = dict(enumerate(BUILTIN.split()))
# Custom operators that the interpreter's own resolver registers (tensorflow/lite/core/kernels/register.cc).
REGISTERED = {"TFLite_Detection_PostProcess", "NumericVerify", "Mfcc", "AudioSpectrogram"}


class Table:
    """A flatbuffer's table at `at`. Every offset is checked; `budget` ends what loops through itself."""

    def __init__(self, data: Any, at: int, budget: list[int]) -> None:
        self._data, self._at, self._budget = data, at, budget
        self._spend(1)
        vtable = at - self._number("<i", at)
        self._fields = vtable + 4
        self._count = (self._number("<H", vtable) - 4) // 2

    def _spend(self, count: int) -> None:
        self._budget[0] -= count
        if self._budget[0] < 0:
            raise ValueError("its tables refer to one another without end")

    def _number(self, form: str, at: int) -> int:
        if at < 0 or at + struct.calcsize(form) > len(self._data):
            raise ValueError(f"it refers to byte {at}, and ends at byte {len(self._data)}")
        return int(struct.unpack_from(form, self._data, at)[0])

    def _place(self, field: int) -> int | None:
        """Where the field's value is; None where it has its default."""
        offset = self._number("<H", self._fields + 2 * field) if field < self._count else 0
        return self._at + offset if offset else None

    def number(self, field: int, form: str, default: int = 0) -> int:
        at = self._place(field)
        return default if at is None else self._number(form, at)

    def vector(self, field: int, size: int) -> tuple[int, int]:
        """(place of the first item, number of items) of items of `size` bytes."""
        place = self._place(field)
        if place is None:
            return 0, 0
        at = place + self._number("<I", place)
        count = self._number("<I", at)
        if at + 4 + count * size > len(self._data):
            raise ValueError(f"it refers to byte {at + 4 + count * size}, and ends at byte {len(self._data)}")
        return at + 4, count

    def place(self, field: int) -> int:
        """Where the field's value is in the file. Raises ValueError where it has its default."""
        at = self._place(field)
        if at is None:
            raise ValueError(f"a table at byte {self._at} has no field {field}")
        return at

    def table(self, field: int) -> Table | None:
        at = self._place(field)
        return None if at is None else Table(self._data, at + self._number("<I", at), self._budget)

    def tables(self, field: int) -> Iterator[Table]:
        first, count = self.vector(field, 4)
        self._spend(count)
        for at in range(first, first + 4 * count, 4):
            yield Table(self._data, at + self._number("<I", at), self._budget)

    def items(self, field: int, form: str) -> list[Any]:
        """The vector's numbers; form: of one of them, as struct names it."""
        first, count = self.vector(field, struct.calcsize(f"<{form}"))
        self._spend(count)
        return list(struct.unpack_from(f"<{count}{form}", self._data, first)) if count else []

    def numbers(self, field: int) -> list[int]:
        return self.items(field, "i")

    def data(self, field: int) -> bytes:
        first, count = self.vector(field, 1)
        self._spend(count // 64)
        return bytes(self._data[first : first + count])

    def text(self, field: int) -> str:
        return self.data(field).decode("utf-8", "replace")


def read(path: Path) -> Contents:
    """See the package's docstring."""
    with mapped(path) as data:
        if data[4:8] != b"TFL3":
            raise ValueError("it has no TFL3 at byte 4")
        root = struct.unpack_from("<I", data)[0]
        model = Table(data, root, [len(data)])
        buffers = list(model.tables(MODEL_BUFFERS))
        for number, buffer in enumerate(buffers):
            _check_buffer(buffer, number, len(data))
        codes = [_code(entry) for entry in model.tables(MODEL_OPCODES)]
        graphs = list(model.tables(MODEL_GRAPHS))
        if not graphs:
            raise ValueError("it has no graph")
        operators = tuple(operator for graph in graphs for operator in _operators(graph, codes, len(buffers)))
        told = {
            entry.text(0): buffers[entry.number(1, "<I")].data(0)
            for entry in model.tables(MODEL_METADATA)
            if entry.text(0) in ("min_runtime_version", FED)
        }
        needed = told.get("min_runtime_version")
        version = None if needed is None else needed.rstrip(b"\0").decode("ascii", "replace")
        inputs = _inputs(graphs[0])
        return Contents("tflite", (path,), inputs, operators, {"min_runtime": version}, _fed(told.get(FED), inputs))


def problems(contents: Contents, package: dict[str, str], options: Mapping[str, Any]) -> list[str]:
    """See the package's docstring."""
    found = []
    needed = contents.versions["min_runtime"]  # TensorFlow's releases, which ai-edge-litert begins behind
    is_numbered_alike = package["package"] == "tflite-runtime"
    if needed is not None and is_numbered_alike and release(package["version"]) < release(needed):
        found.append(f"it needs the runtime of TensorFlow {needed} or later; install a newer one there")
    for operator in dict.fromkeys(operator._replace(node="") for operator in contents.operators):
        first = next(own for own in contents.operators if own._replace(node="") == operator)
        if operator.kind.startswith("Flex"):
            found.append(
                f"operator '{operator.kind}' ({first.node}) is TensorFlow's own and needs its Flex delegate; convert "
                "the model with TFLite's built-in operators alone"
            )
        elif operator.domain == "custom" and str(options.get("delegate", "")).startswith("/"):
            continue  # the vendor's library knows them, or refuses them there
        elif operator.kind == ETHOS_U:
            found.append(
                f"operator '{ETHOS_U}' ({first.node}) was compiled for an Arm NPU, which TFLite reaches through the "
                "vendor's delegate only; name that library with --option delegate=/usr/lib/libethosu_delegate.so, "
                "or as delegate in the profile's [npu]; or take the model from before that step"
            )
        elif operator.domain == "custom" and operator.kind not in REGISTERED:
            found.append(
                f"custom operator '{operator.kind}' ({first.node}) is in no runtime that edgeopt drives: it was "
                "compiled for another library or accelerator; take the model from before that step"
            )
        elif operator.domain == "builtin" and _is_absent(int(operator.kind), package):
            found.append(
                f"built-in operator number {operator.kind} ({first.node}) is not in that release; install a newer "
                "runtime there, ai-edge-litert for tflite-runtime, or convert the model without it"
            )
    return found


def _is_absent(number: int, package: dict[str, str]) -> bool:
    if package["package"] == "tflite-runtime":
        return number > LAST_OF_TFLITE_RUNTIME
    return release(package["version"]) <= NEWEST_KNOWN and (number > LAST_OF_LITERT or number in ABSENT_OF_LITERT)


def _check_buffer(buffer: Table, number: int, length: int) -> None:
    buffer.vector(0, 1)
    offset, size = buffer.number(1, "<Q"), buffer.number(2, "<Q")  # a model above 2 GB keeps its data behind the tables
    if size and offset > 1 and offset + size > length:
        raise ValueError(f"buffer {number} ends at byte {offset + size}, the file at byte {length}")


def _code(entry: Table) -> Operator:
    """One operator code: a custom operator's name, or the number of a built-in one."""
    number = max(entry.number(0, "<b"), entry.number(3, "<i"))
    version = entry.number(2, "<i", 1)
    if number == CUSTOM:
        return Operator(entry.text(1) or "without a name", "", "custom", version)
    return Operator(f"{number}", "", "builtin", version)


def _operators(graph: Table, codes: list[Operator], buffers: int) -> Iterator[Operator]:
    tensors = list(graph.tables(GRAPH_TENSORS))
    for tensor in tensors:
        if tensor.number(2, "<I") >= buffers:
            raise ValueError(f"tensor '{tensor.text(3)}' has buffer {tensor.number(2, '<I')} of {buffers}")
    for number, operator in enumerate(graph.tables(GRAPH_OPERATORS)):
        code = operator.number(0, "<I")
        if code >= len(codes):
            raise ValueError(f"operator {number} has code {code} of {len(codes)}")
        yield codes[code]._replace(node=f"operator {number} of the graph")


def _inputs(graph: Table) -> tuple[Port, ...]:
    tensors = list(graph.tables(GRAPH_TENSORS))
    return tuple(_port(tensors[index]) for index in graph.numbers(GRAPH_INPUTS))


def _fed(content: bytes | None, inputs: tuple[Port, ...]) -> tuple[Fed, ...]:
    """What the metadata says of the inputs. Raises ValueError for what no conversion of ours wrote."""
    if content is None:
        return ()
    told = json.loads(content.rstrip(b"\0").decode("utf-8"))
    if not isinstance(told, list) or len(told) != len(inputs):
        raise ValueError(f"its metadata '{FED}' does not fit its {len(inputs)} inputs")
    found = []
    for own in told:
        if not isinstance(own, dict) or not isinstance(own.get("name"), str) or not isinstance(own.get("steps"), list):
            raise ValueError(f"its metadata '{FED}' holds no names and steps")
        if wrong := preprocess.problems(own["steps"]):
            raise ValueError(f"its metadata '{FED}': {wrong[0]}")
        found.append(Fed(own["name"], tuple(own["steps"])))
    return tuple(found)


def _port(tensor: Table) -> Port:
    shape = tensor.numbers(7) or tensor.numbers(0)  # with sizes of -1 where they are free
    kind = tensor.number(1, "<b")
    name = TYPES[kind] if 0 <= kind < len(TYPES) else f"type {kind}"
    return Port(tensor.text(3), tuple(None if size < 0 else size for size in shape), name)
