"""Seeded mutations of files: bytes, words of a text, trees (JSON, YAML), containers (safetensors, zip), folders.

A case is what one reader is given: {relative path: content}. A path that ends in ``@link`` is a symbolic link whose
content is the target, one in ``@pipe`` a named pipe, one in ``@folder`` an empty folder. Every function takes a
``random.Random`` first, so that equal seeds give equal cases.
"""

import bz2
import copy
import gzip
import io
import json
import lzma
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import lru_cache
from random import Random
from typing import Any

import yaml

Case = dict[str, bytes]
Mutate = Callable[[Random, bytes], bytes]

MOST = 1 << 16  # bytes that a file may grow to; now and then AMPLIFIED
AMPLIFIED = 1 << 21
OUTSIDE = "../outside/secret"  # beside every case's root lie files with these stems, which nothing may open
LINKED = ["../elsewhere/1.jpg", "../elsewhere", "../elsewhere/deep", ".", "gone", "gone/x"]  # to which links may lead

INTEGERS = [0, 1, -1, 2, 3, 7, 255, 256, 1000, 2**15, 2**16 - 1, 10**5, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53, 2**63]
ONNX_INTEGERS = [number for number in INTEGERS if abs(number) < 2**63]
FLOATS = [0.0, -0.0, 0.5, 1e-320, 1e-9, 1e9, 1e38, 1e39, 1e308, float("inf"), float("-inf"), float("nan")]
PATHS = [
    *(f"{OUTSIDE}.{suffix}" for suffix in ("jpg", "xml", "txt", "yaml", "safetensors")),
    *(OUTSIDE, f"../{OUTSIDE}", "..", ".", "/", "/etc/passwd", "/dev/zero", "/proc/self/mem", "~root", "$HOME/x", "~x"),
    *("a/../..", "%2e%2e", "C:\\x", "file:///etc/passwd", "http://127.0.0.1:9/x", "a" * 300, "a/" * 3000, "con"),
]
STRINGS = [
    *("", " ", "\0", "\x1b[31m", "\n", "\r\n", "\u2028", "\ud800", "é", "e\u0301", "😀", "\ufeff", "\u202e", "٣", "１"),
    *("nan", "inf", "-inf", "1_0", "0x10", "1e999", "null", "~", "true", "on", "{}", "[]", "$x^", "$\\frac$", "%s%n"),
    *(
        "9" * 5000,
        "A" * 5000,
        "__class__",
        "<!DOCTYPE a>",
        "<?xml version='1.0' encoding='utf-16'?>",
        "&a;",
        "*a",
        "&a",
    ),
    *("!!python/object/apply:os.system [x]", "<<: *a", "%YAML 9.9", "2001-13-41", "!!binary x", "!!set {}", "=", ":"),
]


def pick_value(random: Random) -> Any:
    """A JSON-like value that readers may not expect."""
    kind = random.randrange(8)
    if kind == 0:
        return random.choice([None, True, False, [], {}, [[]], {"": {}}, [None] * 3, [[1, 2], 3], {"a": [1]}])
    if kind <= 2:
        return random.choice(INTEGERS) + random.choice([0, 0, 1, -1])
    if kind == 3:
        return random.choice(FLOATS)
    if kind == 4:
        return 10 ** random.randrange(20, 400)
    if kind == 5:
        return nested(random.choice([5, 50, 400]), random.choice([[], {}, 0]))
    return random.choice(PATHS if kind == 6 else STRINGS)


def as_json(value: Any) -> str:
    """The value as JSON, or as much of it as Python can nest and hold."""
    try:
        return json.dumps(value)
    except (RecursionError, MemoryError):
        return "[" * 100_000


def nested(depth: int, value: Any) -> Any:
    for _ in range(depth):
        value = [value]
    return value


def encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def raw(random: Random, data: bytes) -> bytes:
    """Bits, numbers, cuts and copies anywhere."""
    out = bytearray(data)
    for _ in range(random.choice([1, 1, 1, 2, 4, 16])):
        size = len(out)
        at, length = random.randrange(size + 1), random.choice([1, 1, 2, 4, 8, 64, 1024])
        kind = random.randrange(10)
        if kind <= 1 and at < size:
            out[at] ^= 1 << random.randrange(8)
        elif kind == 2 and at < size:
            out[at] = random.choice([0, 1, 0x7F, 0x80, 0xFE, 0xFF, random.randrange(256)])
        elif kind == 3:
            form = random.choice(["<h", ">h", "<i", ">i", "<q", ">q", "<f", ">f"])
            value = random.choice(FLOATS[:7]) if form[1] == "f" else random.choice(INTEGERS)
            packed = struct.pack(form, value if form[1] == "f" else wrapped(value, struct.calcsize(form)))
            out[at : at + len(packed)] = packed
        elif kind == 4:
            del out[at:]
        elif kind == 5:
            del out[at : at + length]
        elif kind == 6:
            out[at:at] = out[at : at + length]
        elif kind == 7:
            out[at:at] = random.randbytes(length)
        elif kind == 8:
            out[at : at + length] = bytes([random.choice([0, 0xFF, 0x20])]) * length
        else:
            other = random.randrange(size + 1)
            out[at : at + length] = out[other : other + length]
    return bytes(out[:MOST])


def wrapped(value: int, size: int) -> int:
    """The integer that is left of ``value`` in ``size`` signed bytes."""
    return int.from_bytes((value % (1 << 8 * size)).to_bytes(size, "little"), "little", signed=True)


def words(*dictionary: str, separators: str = r"[\s,=:;<>\[\]{}\"'/]") -> Mutate:
    """Mutations of a text by lines and by words; ``dictionary`` are words that mean something to its reader."""
    split = re.compile(f"({separators}+)")

    def mutate(random: Random, data: bytes) -> bytes:
        text = data.decode("utf-8", "replace")
        for _ in range(random.choice([1, 1, 1, 2, 3, 8])):
            lines = text.splitlines(keepends=True) or [""]
            at, other = random.randrange(len(lines)), random.randrange(len(lines))
            kind = random.randrange(10)
            if kind == 0:
                del lines[at]
            elif kind == 1:
                lines.insert(at, lines[other])
            elif kind == 2:
                lines[at], lines[other] = lines[other], lines[at]
            elif kind == 3 and random.random() < 0.1:
                most = AMPLIFIED if random.random() < 0.05 else MOST
                lines[at:at] = lines[at : at + 3] * min(most // (sum(map(len, lines[at : at + 3])) + 1), 1 << 17)
            elif kind == 4:
                lines[at] = random.choice(dictionary or STRINGS) + "\n"
            else:
                parts = split.split(lines[at])
                spot = random.randrange(len(parts))
                parts[spot] = word(random, dictionary)
                lines[at] = "".join(parts)
            text = "".join(lines)
        out = encode(text)
        return raw(random, out) if random.random() < 0.1 else out[:AMPLIFIED]

    return mutate


def word(random: Random, dictionary: tuple[str, ...]) -> str:
    if dictionary and random.random() < 0.6:
        return random.choice(dictionary)
    return str(random.choice([random.choice(group) for group in (INTEGERS, FLOATS, PATHS, STRINGS)]))


def tree(random: Random, value: Any) -> Any:
    """A JSON-like value that is nobody else's, changed at some places."""
    for _ in range(random.choice([1, 1, 1, 2, 4])):
        value = changed(random, value)
    return value


def changed(random: Random, value: Any) -> Any:
    """``value`` with one place changed, mostly deep down."""
    if isinstance(value, dict) and value and random.random() < 0.9:
        key = random.choice(list(value))
        kind = random.randrange(12)
        if kind == 0:
            del value[key]
        elif kind == 1:
            value[random.choice([*STRINGS, *PATHS, *value])] = value.pop(key)
        elif kind == 2:
            value[random.choice(STRINGS)] = pick_value(random)
        else:
            value[key] = changed(random, value[key])
        return value
    if isinstance(value, list) and value and random.random() < 0.9:
        at = random.randrange(len(value))
        kind = random.randrange(12)
        if kind == 0:
            del value[at]
        elif kind == 1:
            value.insert(at, value[random.randrange(len(value))])
        elif kind == 2:
            value.append(pick_value(random))
        elif kind == 3 and random.random() < 0.1:
            value += [value[at]] * random.choice([10, 1000, 20000])
        else:
            value[at] = changed(random, value[at])
        return value
    if isinstance(value, int | float) and random.random() < 0.3:
        return value * random.choice([-1, 2, 1000]) + random.choice([0, 1])
    return pick_value(random)


def json_text(random: Random, data: bytes) -> bytes:
    """A JSON file, changed as a tree, or as a text where it is none."""
    try:
        value = json.loads(data)
        if random.random() < 0.15:
            raise ValueError
        return as_json(tree(random, value)).encode()[:AMPLIFIED]
    except (ValueError, RecursionError):
        return words("[", "]", "{", "}", ",", "NaN", "Infinity", "-0", "1E400", '"\\ud800"', '"\\u0000"')(random, data)


def yaml_value(data: bytes) -> Any:
    """What a YAML file holds. Raises yaml.YAMLError, ValueError, RecursionError."""
    return copy.deepcopy(_parsed(data))


@lru_cache(4096)
def _parsed(data: bytes) -> Any:
    return yaml.safe_load(data)  # takes many times as long as a copy, and the seeds are a few


def yaml_text(*dictionary: str) -> Mutate:
    """A YAML file, changed as a tree, or as a text with anchors and tags in it."""
    doubled = "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 30))
    merged = "".join(f"m{i}: &m{i} {{{{<<: [*m{i - 1}, *m{i - 1}]}}}}\n" for i in range(1, 30))
    bombs = f"a0: &a0 [x, x]\n{doubled}{{}}: *a29\n", f"m0: &m0 {{{{a: 1}}}}\n{merged}{{}}: *m29\n"
    text = words(
        *dictionary, "&a", "*a", "<<: *a", "!!python/name:os.system", "? ", "- ", "|", ">", "---", "...", "!!str"
    )

    def mutate(random: Random, data: bytes) -> bytes:
        kind = random.random()
        if kind < 0.03:
            return data + random.choice(bombs).format(random.choice([*dictionary, "x"])).encode()
        if kind < 0.06:
            return data + f"\n{random.choice([*dictionary, 'x'])}: &a [*a, {{b: *a}}]\n".encode()
        if kind < 0.6 and b"&" not in data:  # a tree with itself in it, or a bomb, is no tree
            try:
                return encode(yaml.safe_dump(tree(random, yaml_value(data)), allow_unicode=True))[:AMPLIFIED]
            except (yaml.YAMLError, ValueError, TypeError, RecursionError):
                pass
        return text(random, data)

    return mutate


def safetensors_file(random: Random, data: bytes) -> bytes:
    """Header, metadata or values of a safetensors file changed, the header's length mostly right."""
    try:
        (length,) = struct.unpack("<Q", data[:8])
        header, values = json.loads(data[8 : 8 + length]), data[8 + length :]
    except (struct.error, ValueError, RecursionError):
        return raw(random, data)
    kind = random.randrange(10)
    if kind == 0:
        return raw(random, data)
    if kind <= 2:
        values = raw(random, values)
    elif (
        kind == 3 and isinstance(header, dict) and "dtype" in (entry := dict_of(random.choice([*header.values(), {}])))
    ):
        dtypes = "BOOL F4 F6_E2M3 F8_E4M3 F8_E5M2 F8_E8M0 I8 U8 I16 U16 F16 BF16 I32 U32 F32 C64 F64 I64 U64 X".split()
        entry["dtype"] = random.choice(dtypes)
        offsets = entry.get("data_offsets")
        if random.random() < 0.7 and isinstance(offsets, list) and [type(at) for at in offsets] == [int, int]:
            start, end = offsets  # of a size that fits again
            bits = int(re.sub(r"\D", "", entry["dtype"].split("_")[0]) or 8)
            entry["shape"] = [max(0, end - start) * 8 // bits]
    elif kind <= 5 and isinstance(header, dict) and isinstance(meta := header.get("__metadata__"), dict) and meta:
        key = random.choice(list(meta))
        meta[key] = json_text(random, encode(str(meta[key]))).decode("utf-8", "replace")
    else:
        header = tree(random, header)
    text = encode(as_json(header))
    return struct.pack("<Q", len(text) if random.random() < 0.95 else random.choice(INTEGERS) % 2**64) + text + values


def onnx_file(*operators: str) -> Mutate:
    """An ONNX file with other operators, attributes, edges, sizes or values; sometimes what no parser takes."""

    def mutated(random: Random, data: bytes) -> bytes:
        import onnx
        from google.protobuf.message import DecodeError

        try:
            model = onnx.ModelProto.FromString(data)
        except DecodeError:
            return raw(random, data)
        if random.random() < 0.15 or not model.graph.node:
            return raw(random, data)
        for _ in range(random.choice([1, 1, 2, 4])):
            _change_onnx(random, model, operators)
        return model.SerializeToString()

    return mutated


def _change_onnx(random: Random, model: Any, operators: tuple[str, ...]) -> None:
    graph, kind = model.graph, random.randrange(10)
    node = random.choice(graph.node)
    names = [name for other in graph.node for name in (*other.input, *other.output)] + ["", "x", "nowhere"]
    if kind == 0:
        node.op_type = random.choice(operators)
    elif kind == 1:
        edges = random.choice([node.input, node.input, node.output])
        if edges:
            edges[random.randrange(len(edges))] = random.choice(names)
        else:
            edges.append(random.choice(names))
    elif kind == 2:
        random.choice([node.input, node.output]).append(random.choice(names))
    elif kind == 3 and len(graph.node) > 1:
        graph.node.remove(node)
    elif kind == 4 and model.opset_import:
        model.opset_import[0].version = random.choice([*range(7, 25), -1, 2**40])
    elif kind == 5 and graph.input:
        for size in graph.input[0].type.tensor_type.shape.dim[random.randrange(4) :][:1]:
            size.dim_value = random.choice([1, 2, 7, 64, *ONNX_INTEGERS])
    elif kind == 6 and graph.initializer:
        _change_tensor(random, random.choice(graph.initializer))
    elif node.attribute:
        _change_attribute(random, random.choice(node.attribute))


def _change_attribute(random: Random, attribute: Any) -> None:
    numbers = [0, 1, 2, 3, -1, -2, 64, *ONNX_INTEGERS]
    if attribute.HasField("t"):
        _change_tensor(random, attribute.t)
    elif attribute.ints:
        attribute.ints[random.randrange(len(attribute.ints))] = random.choice(numbers)
        if random.random() < 0.2:
            attribute.ints.append(1)
    elif attribute.HasField("i"):
        attribute.i = random.choice(numbers)
    elif attribute.HasField("f"):
        attribute.f = random.choice([0.0, -1.0, 1e38, math.inf, math.nan])
    elif random.random() < 0.5:
        attribute.type = random.randrange(15)
    else:
        attribute.name = random.choice(["axis", "axes", "pads", "group", "perm", "value", "mode", "strides"])


def _change_tensor(random: Random, tensor: Any) -> None:
    kind = random.randrange(4)
    if kind == 0 and tensor.dims:
        tensor.dims[random.randrange(len(tensor.dims))] = random.choice([0, 1, 2, 64, *ONNX_INTEGERS])
    elif kind == 1:
        tensor.data_type = random.randrange(25)
    elif kind == 2 and tensor.external_data:
        entry = random.choice(tensor.external_data)
        entry.value = random.choice(["net.onnx", "-1", "99999999999", "", "a\0b", *PATHS])
    elif tensor.int64_data:
        tensor.int64_data[0] = random.choice(ONNX_INTEGERS)
    else:
        tensor.raw_data = raw(random, tensor.raw_data)


def dict_of(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def zip_file(random: Random, data: bytes) -> bytes:
    """The members of a zip archive changed, renamed, doubled, left out or compressed, the sums of it right again."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(name, archive.read(name)) for name in archive.namelist()]
    except (zipfile.BadZipFile, zlib.error, ValueError, NotImplementedError, OSError, EOFError, RuntimeError):
        return raw(random, data)
    if random.random() < 0.2 or not members:
        return raw(random, data)
    at = random.randrange(len(members))
    pickles = [i for i, (name, _) in enumerate(members) if name.endswith(".pkl")]
    if pickles and random.random() < 0.7:
        at = random.choice(pickles)
    name, content = members[at]
    kind = random.randrange(12)
    compression = zipfile.ZIP_DEFLATED if kind == 0 else zipfile.ZIP_STORED
    if kind == 0:
        content = content + bytes(random.choice([0, 1 << 20]))
    elif kind == 1:
        name = random.choice([*PATHS[:12], name + "x", name.replace("data", "constants")])
    elif kind == 2:
        members.append((name, raw(random, content)))
    else:
        content = pickled(random, content) if name.endswith(".pkl") else raw(random, content)
    members[at] = (name, content)
    if kind == 3:
        del members[at]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name.replace("\0", "_")[:200])
            archive.writestr(info, content, compression)
    return out.getvalue()


def torch_file(random: Random, data: bytes) -> bytes:
    """What ``torch.save`` wrote: a zip by its members, the older form by its pickles."""
    return zip_file(random, data) if data[:2] == b"PK" else pickled(random, data)


def archive_file(random: Random, data: bytes) -> bytes:
    """A zip by its members; a compressed tar by what it holds, packed again, or by its bytes."""
    for module in (gzip, bz2, lzma):
        try:
            content = module.decompress(data)
        except (OSError, EOFError, ValueError, MemoryError, lzma.LZMAError, zlib.error):
            continue
        if random.random() < 0.7:
            return module.compress(tar_file(random, content))
    return zip_file(random, data) if data[:2] == b"PK" else tar_file(random, data)


def tar_file(random: Random, data: bytes) -> bytes:
    """One field of a tar's header changed and its sum made right again, or bytes anywhere."""
    heads = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
    if not heads or random.random() < 0.2:
        return raw(random, data)
    at = random.choice(heads)
    head = bytearray(data[at : at + 512])
    start, size = random.choice([(0, 100), (100, 8), (124, 12), (156, 1), (157, 100), (257, 8), (329, 8), (345, 155)])
    kind = bytes([random.choice(b"0123456789xgLKSAV")])
    numbers = [
        b"77777777777",
        b"-1",
        b"\x80" + bytes(7) + b"\xff" * 4,
        b"\xff" * 12,
        oct(random.choice(INTEGERS))[2:].encode(),
    ]
    value = kind if size == 1 else random.choice(numbers) if size in (8, 12) else encode(random.choice(PATHS + STRINGS))
    head[start : start + size] = value[:size].ljust(size, b"\0")
    head[148:156] = b" " * 8
    head[148:156] = f"{sum(head):06o}\0 ".encode()
    return data[:at] + bytes(head) + data[at + 512 :]


OPCODES = [
    b".",
    b"0",
    b"1",
    b"2",
    b"(",
    b")",
    b"]",
    b"}",
    b"a",
    b"b",
    b"e",
    b"s",
    b"t",
    b"u",
    b"l",
    b"d",
    b"R",
    b"Q",
    b"N",
]
GLOBALS = ["os system", "builtins eval", "torch Tensor", "torch FloatStorage", "torch._utils _rebuild_tensor_v2"]
GLOBALS += ["collections OrderedDict", "torch._utils _rebuild_meta_tensor_no_storage", "torch._utils _rebuild_qtensor"]
GLOBALS += ["torch._utils _rebuild_sparse_tensor", "torch._utils _rebuild_parameter", "torch.storage UntypedStorage"]
GLOBALS += [
    "torch.nested._internal.nested_tensor _rebuild_njt",
    "torch serialization._get_layout",
    "torch.serialization load",
]


def pickled(random: Random, data: bytes) -> bytes:
    """A pickle with operations put in, other globals named, numbers changed."""
    if random.random() < 0.3:
        return raw(random, data)
    out, at = bytearray(data), random.randrange(len(data) + 1)
    kind = random.randrange(4)
    if kind == 0:
        out[at:at] = random.choice(OPCODES)
    elif kind == 1:
        names = list(re.finditer(rb"c[\w.]+\n\w+\n", data))
        named = f"c{random.choice(GLOBALS)}\n".replace(" ", "\n").encode()
        span = random.choice(names).span() if names else (at, at)
        out[slice(*span)] = named
    else:  # the integers of shapes, strides and sizes
        numbers = list(re.finditer(rb"K.|M..|J....", data, re.DOTALL))
        span = random.choice(numbers).span() if numbers else (at, at)
        out[slice(*span)] = b"\x8a\x08" + struct.pack("<q", wrapped(random.choice(INTEGERS), 8))
    return bytes(out)


def folder(random: Random, case: Case, links: bool) -> Case:
    """A case with one path left out, or made a pipe or a folder; with ``links`` also renamed, or made a link."""
    case = dict(case)
    path = random.choice(list(case))
    kind = random.randrange(8 if links else 3)
    content = case.pop(path)
    parent = path.rpartition("/")[0]
    if kind == 1:
        case[f"{path}@pipe"] = b""
    elif kind == 2:
        case[f"{path}@folder"] = b""
    elif 3 <= kind <= 5:
        up = "../" * path.count("/")
        target = random.choice([*(up + name for name in LINKED), path, path.rpartition("/")[2]])
        linked = path if kind < 5 or not parent else parent
        if linked == parent:
            case = {name: data for name, data in case.items() if not name.startswith(f"{parent}/")}
            target = "../" * parent.count("/") + random.choice(LINKED)
        case[f"{linked}@link"] = encode(target)
    elif kind >= 6:
        name = random.choice(
            [*STRINGS, "x/" * random.choice([3, 250]) + "x.jpg", f"{parent}/x.jpg", "0", "00x.safetensors"]
        )
        case[clean(name) or "x"] = content
    return case or {path: content}


def clean(name: str) -> str:
    """A name that a file can have below the root: longer parts cut, no way up."""
    parts = [part.replace("\0", "")[:200] for part in name.split("/") if part.strip(".")]
    return "/".join(parts)[:3800].replace("@", "_")


def mutate(random: Random, case: Case, kinds: Callable[[str], Mutate], structure: float, links: bool) -> Case:
    """One or more changes to a case; ``kinds`` gives the mutation for a path's content, ``structure`` the share of
    changes that move files about (see ``folder``)."""
    case = dict(case)
    while True:
        if random.random() < structure:
            case = folder(random, case, links)
        else:
            path = random.choice(list(case))
            if "@" not in path:
                case[path] = kinds(path)(random, case[path])
        if random.random() < 0.7:
            return case
