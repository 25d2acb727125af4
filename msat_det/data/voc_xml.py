"""VOC's annotation files, as VOC and the tools of others write them: one XML file an image."""

import codecs
import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from msat_det.base.errors import InputError
from msat_det.base.files import MAX_XML, MissingData, absent, bytes_of, is_file, one_line, show
from msat_det.data.base import MAX_COORDINATE, Target, make_target
from msat_det.data.voc_classes import class_index, unknown_class

EDGES = ("xmin", "ymin", "xmax", "ymax")
ENCODING = re.compile(rb"<\?xml[^>]*?\sencoding\s*=\s*[\"']([A-Za-z][A-Za-z0-9._-]*)[\"']")
NO_CHARSETS = {"idna", "punycode", "unicode-escape", "raw-unicode-escape"}  # Python's, some of them take n² steps
YES, NO = ("1", "1.0", "true", "yes"), ("", "0", "0.0", "false", "no", "none", "null", "unspecified", "unknown")
FLAGS = dict.fromkeys(YES, True) | dict.fromkeys(NO, False)


@dataclass(frozen=True, slots=True)
class VocObject:
    """name: its class. box: x1 y1 x2 y2, continuous edges from 0. difficult: VOC's flag."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool


@dataclass(frozen=True)
class VocAnnotation:
    """What one file says. image: its ``filename``, empty where it has none. size: (width, height) of the image
    when it was annotated, in pixels; None where the file has none, or 0."""

    path: Path
    image: str
    size: tuple[int, int] | None
    objects: list[VocObject]

    def target(self, classes: list[str]) -> Target:
        """The objects, labels being indices into ``classes``. Raises InputError for an object of no such class."""
        index = class_index(classes)
        for number, found in enumerate(self.objects, 1):
            if found.name not in index:
                raise InputError(f"{self.path}, object {number}: {unknown_class(found.name, classes)}")
        return make_target(
            [found.box for found in self.objects],
            [index[found.name] for found in self.objects],
            [found.difficult for found in self.objects],
        )


def read_voc_xml(path: Path) -> VocAnnotation:
    """One VOC annotation file. Raises InputError that names the object that can't be used.

    VOC's numbers are pixels, counted from 1, and the last one belongs to the box: xmin 1, xmax 3 are the edges 0 and 3.
    A box that begins at 0 or below, as tools write that count from 0, begins at the image's edge.
    """
    root = parse_xml(path)
    if root.tag != "annotation":
        raise InputError(f"{path}: the root element is {show(root.tag)}, a VOC annotation has <annotation>")
    elements = enumerate(root.findall("object"), 1)
    objects = [read_object(element, f"{path}, object {number}") for number, element in elements]
    return VocAnnotation(path, one_line(root.findtext("filename", "")), read_size(root), objects)


def read_size(root: Element) -> tuple[int, int] | None:
    width, height = (one_line(root.findtext(f"size/{side}", "")) for side in ("width", "height"))
    known = all(re.fullmatch(r"0*[1-9]\d{0,8}", side, re.ASCII) for side in (width, height))
    return (int(width), int(height)) if known else None


def read_object(element: Element, where: str) -> VocObject:
    name = one_line(element.findtext("name", ""))
    if not name:
        raise InputError(f"{where}: unknown class '': write its <name>")
    try:
        box = [float(element.findtext(f"bndbox/{edge}", "")) for edge in EDGES]
    except ValueError as error:
        raise InputError(f"{where}: bndbox needs four numbers {', '.join(EDGES)}") from error
    finite = all(abs(value) < MAX_COORDINATE for value in box)
    if not (finite and box[0] - 1 < box[2] and box[1] - 1 < box[3]):  # less than a pixel wide, xmin lies above xmax
        raise InputError(f"{where}: box {box} must be finite with xmin ≤ xmax and ymin ≤ ymax")
    flag = one_line(element.findtext("difficult", ""))
    if flag.lower() not in FLAGS:
        raise InputError(f"{where}: difficult is {show(flag)}, it must be 0 or 1")
    left, top, right, bottom = (max(0.0, value) for value in (box[0] - 1, box[1] - 1, box[2], box[3]))
    return VocObject(name, (left, top, right, bottom), FLAGS[flag.lower()])


def parse_xml(path: Path) -> Element:
    """The root element of a file in the encoding that it declares; attributes and prefixes of names are left out.

    A document type may be there, but neither entities nor attributes that it declares: they make bombs of a few bytes
    (as do namespaces, so the parser doesn't know of them), and read files of the machine. Raises InputError.
    """

    def refuse(*_: object) -> None:
        raise InputError(f"{path}: its document type declares what no VOC annotation needs: remove <!DOCTYPE …>")

    builder, parser = TreeBuilder(), expat.ParserCreate()
    parser.buffer_text = True
    parser.EntityDeclHandler = parser.AttlistDeclHandler = parser.SkippedEntityHandler = refuse
    parser.StartElementHandler = lambda tag, _: builder.start(tag.rpartition(":")[2], {})
    parser.EndElementHandler = lambda tag: builder.end(tag.rpartition(":")[2])
    parser.CharacterDataHandler = builder.data
    text = read_xml_text(path)
    try:
        parser.Parse(text, True)
        return builder.close()
    except (expat.ExpatError, ValueError) as error:  # the latter: half a character
        raise InputError(f"{path}: broken XML ({error}): restore the file") from error


def read_xml_text(path: Path) -> str:
    """A file's text without a byte order mark and without what stands before its first element. Raises InputError."""
    if not is_file(path):
        raise MissingData(f"{absent(path)}: check the root, the split and the year")
    try:
        raw = bytes_of(path, MAX_XML)
        encoding = xml_encoding(raw)
        return raw.decode(encoding).lstrip("\ufeff \t\r\n")
    except LookupError as error:
        raise InputError(f"{path}: broken XML ({error}): restore the file") from error
    except UnicodeError as error:
        raise InputError(
            f"can't read {path} as {encoding.upper()} text ({error}): restore the file or declare its encoding"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"can't read {path} ({error}): restore the file") from error


def xml_encoding(raw: bytes) -> str:
    """By the byte order mark, by the zeros that UTF-16 begins with, by the declaration; else it is UTF-8.

    UTF-16 that is declared in single bytes is no UTF-16: programs declare it that write strings of their own.
    Raises LookupError for an encoding that isn't known.
    """
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if raw[:2] in (b"<\0", b"\0<"):
        return "utf-16-le" if raw[0] else "utf-16-be"
    declared = ENCODING.match(raw.removeprefix(codecs.BOM_UTF8).lstrip()[:200])
    if not declared or raw.startswith(codecs.BOM_UTF8):
        return "utf-8"
    name = codecs.lookup(declared[1].decode()).name
    if name in NO_CHARSETS:
        raise LookupError(f"unknown encoding: {name}")
    return "utf-8" if name.startswith(("utf-16", "utf-32")) else name
