"""The safetensors format: 8 bytes, the length of a JSON header; the header; little-endian tensors.

https://huggingface.co/docs/safetensors
"""

import json
import math
import sys

import torch

from src.runtime.console import UserError

LONGEST_HEADER = 100_000_000  # bytes, the format's own bound
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
          "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
          "U8": torch.uint8, "BOOL": torch.bool}


def read_safetensors(path):
    """{name: tensor} of a safetensors file. Raises UserError, naming the file, when it is damaged
    or holds a type that no network here has."""
    with open(path, "rb") as file:
        data = bytearray(file.read())
    length = int.from_bytes(data[:8], "little")
    try:
        if not 2 <= length <= min(LONGEST_HEADER, len(data) - 8):
            raise ValueError(f"a header of {length} bytes in a file of {len(data)}")
        header = json.loads(data[8:8 + length])
        body = memoryview(data)[8 + length:]
        return {name: tensor_in(body, name, **entry) for name, entry in header.items()
                if name != "__metadata__"}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: is cut off or damaged, or no safetensors file ({error}); "
                        "download it again") from None


def tensor_in(body, name, dtype, shape, data_offsets):
    """The tensor of a header's entry, a copy. Raises ValueError or TypeError for a wrong entry."""
    if dtype not in DTYPES:
        raise ValueError(f"{name} has the type {dtype}, which is none of {', '.join(DTYPES)}")
    if not all(type(number) is int and number >= 0 for number in (*shape, *data_offsets)):
        raise ValueError(f"{name} has the shape {shape} at {data_offsets}")
    begin, end = data_offsets
    size = math.prod(shape) * DTYPES[dtype].itemsize
    if not begin + size == end <= len(body):
        raise ValueError(f"{name} lies at {begin} to {end} of {len(body)} bytes and needs {size}")
    if not size:
        return torch.empty(shape, dtype=DTYPES[dtype])
    tensor = torch.frombuffer(body[begin:end], dtype=torch.uint8).clone()
    if sys.byteorder == "big":
        tensor = tensor.view(-1, DTYPES[dtype].itemsize).flip(1).flatten()
    return tensor.view(DTYPES[dtype]).view(shape)
