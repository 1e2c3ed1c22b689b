"""What the inputs of a TFLite artifact were in its source: names and layout, written into the file's metadata.

A TFLite input is called serving_default_args_0 and is channel-last; who gives it samples of the source must be told.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.formats.tflite import FED


def describe(path: Path, names: Sequence[str], steps: Sequence[Sequence[dict[str, Any]]]) -> None:
    """Adds to the artifact, per input, the source's name and the steps that turn its samples into the artifact's."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    told = [{"name": name, "steps": list(own)} for name, own in zip(names, steps, strict=True)]
    model = flatbuffer_utils.read_model(str(path))
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(json.dumps(told).encode("utf-8"), dtype=np.uint8)
    entry.name, entry.buffer = FED, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    path.write_bytes(bytes(flatbuffer_utils.convert_object_to_bytearray(model)))
