"""Hostile packed files: 300 of them, each by its number."""

import json
import random
import struct

import numpy as np

HUGE = [2**60, 2**63 - 1, 2**64, 10**30, -1, 0, 2**31, 1.5, None, "x", [], {}, True, float("nan")]
KWARGS = [
    {"width": 10**9},
    {"num_classes": 10**9},
    {"in_channels": 10**9},
    {"num_steps": 10**9, "membrane_norm": True},
    {"depths": [10**8], "multiples": [1]},
    {"depths": [10**5] * 4},
    {"depths": [1] * 10**5, "multiples": [1] * 10**5},
    {"multiples": [10**6, 10**7]},
    {"hidden": 10**12},
    {"neuron_options": {"spike_bits": 10**9}},
    {"neuron": "os.system"},
    {"synapse": "__import__"},
    {"nothing": 1},
    {"width": -4},
    {"width": 0},
    {"width": "8"},
    {"width": 2.5},
]


def split(content):
    (length,) = struct.unpack("<Q", content[:8])
    outer = json.loads(content[8 : 8 + length])
    return outer, json.loads(outer["__metadata__"]["sj_online"]), bytearray(content[8 + length :])


def join(outer, header, data, keep_checksum=False):
    outer = json.loads(json.dumps(outer))
    texts = outer["__metadata__"]
    outer["__metadata__"] = {
        "sj_online": header if isinstance(header, str) else json.dumps(header, separators=(",", ":"))
    }
    if keep_checksum:
        outer["__metadata__"]["sj_online_sha256"] = texts["sj_online_sha256"]
    text = json.dumps(outer).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)


def _tensor(draw, outer, kind=None):
    names = [name for name in outer if name != "__metadata__" and (kind is None or name.endswith(kind))]
    return draw.choice(names)


def kwargs(draw, outer, header, data):
    """Ask for another network, of any size."""
    header["kwargs"] |= draw.choice(KWARGS)
    return join(outer, header, data)


def fields(draw, outer, header, data):
    """Another value in the header."""
    place = draw.choice(list(header))
    if place == "metadata":
        place = "format"
    if place == "extra":
        header["extra"] = {draw.choice(list(outer)[1:]): 1}
    elif place == "packed" and draw.random() < 0.8:
        name = draw.choice(list(header["packed"]))
        entry = header["packed"][name]
        part = draw.choice(["bits", "shape", "more", "name", "gone"])
        if part == "bits":
            entry["bits"] = draw.choice([3 - entry["bits"], *HUGE])
        elif part == "shape":
            entry["shape"][draw.randrange(len(entry["shape"]))] = draw.choice(HUGE)
        elif part == "more":
            entry["shape"] = entry["shape"] + [draw.choice([2, 2**60])] * draw.choice([1, 1000])
        elif part == "name":
            header["packed"][draw.choice(["", "..", "stem", "x" * 10**5])] = header["packed"].pop(name)
        else:
            del header["packed"][name]
    else:
        header[place] = draw.choice([v for v in HUGE if v != header[place]] + [[[]] * 3])
        if place == "kwargs" and header[place] == {}:
            header[place] = {"width": 10**9}
        if place == "packed" and header[place] == {}:
            header[place] = 3
    return join(outer, header, data)


def text(draw, outer, header, data):
    """No JSON, or too deep, or too much of it."""
    return join(outer, draw.choice(["", "{", "[" * 50_000, "null", "3", "9" * 10_000, "{}" * 10, "[1," * 10**5]), data)


def offsets(draw, outer, header, data):
    """Shapes, types and places of tensors."""
    name = _tensor(draw, outer)
    entry, part = outer[name], draw.choice(["shape", "dtype", "data_offsets", "name", "gone", "twice"])
    if part == "shape":
        entry["shape"] = draw.choice([[2**60], [2**60, 2**60], [-1], [0], [2**32, 2**32], entry["shape"] + [2]])
    elif part == "dtype":
        entry["dtype"] = draw.choice([d for d in ("F64", "I32", "BOOL", "F99", "", "F8_E4M3") if d != entry["dtype"]])
    elif part == "data_offsets":
        begin, end = entry["data_offsets"]
        ends = [[begin, 2**60], [begin + 1, end], [end + 1, begin], [-1, end], [2**63, 2**64]]
        entry["data_offsets"] = draw.choice(ends)
    elif part == "name":
        outer[draw.choice(["x", "", "stem.conv.weight.", "\ud7ff"])] = outer.pop(name)
    elif part == "gone":
        del outer[name]
    else:
        outer["twice"] = entry
    return join(outer, header, data)


def values(draw, outer, header, data):
    """Not a number, infinite, negative scales and variances."""
    kind = draw.choice(["scale", "running_var", "running_mean", "weight", "raw_threshold"])
    bad = [float("nan"), float("inf"), -float("inf")] + ([-1.0] if kind in ("scale", "running_var") else [])
    begin, end = outer[_tensor(draw, outer, kind)]["data_offsets"]
    place = begin + 4 * draw.randrange((end - begin) // 4)
    data[place : place + 4] = np.float32(draw.choice(bad)).tobytes()
    return join(outer, header, data)


def flipped(draw, outer, header, data):
    """A bit of the data is another, which the checksum knows."""
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return join(outer, header, data, keep_checksum=True)


def raw(draw, outer, header, data):
    """Bytes of the whole file: cut, longer, others, or a length that is none."""
    content = bytearray(join(outer, header, data, keep_checksum=True))
    kind = draw.choice(["cut", "longer", "length", "byte"])
    if kind == "cut":
        return bytes(content[: draw.randrange(len(content))])
    if kind == "longer":
        return bytes(content) + b"\0" * draw.choice([1, 10**6])
    if kind == "length":
        content[:8] = struct.pack("<Q", draw.choice([0, 1, 2**63, 2**64 - 1, len(content), len(content) - 9]))
    else:
        content[draw.randrange(8, len(content))] ^= 1 << draw.randrange(8)
    return bytes(content)


KINDS = [kwargs, fields, text, offsets, values, flipped, raw]
CASES = 300


def case(number, content):
    """The hostile file of this number, made of a good one."""
    draw = random.Random(number)
    return KINDS[number % len(KINDS)](draw, *split(content))
