"""The house keeps its order: a room imports only rooms below it, no file imports itself by a detour, and tests' files
have names of their own, for pytest takes those of one name for one module.
"""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "msat_det"
ROOMS = ["base", "data", "graph", "models", "spiking", "methods", "measure", "report", "run"]  # from the ground up


def modules() -> dict[str, Path]:
    names = {path: ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in PACKAGE.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


def imported(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The package's modules that a file imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import: write the whole name"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    found = {word if word in known else word.rpartition(".")[0] for word in found}
    return (found & set(known)) - {name}


ARROWS = {name: imported(name, path, modules()) for name, path in modules().items()}


def test_rooms_import_downwards() -> None:
    level = {room: number for number, room in enumerate(["__init__", *ROOMS, "__main__"])}
    inside = {name: name.split(".")[1] for name in ARROWS if "." in name}
    upwards = [f"{a} → {b}" for a in inside for b in ARROWS[a] if level[inside[a]] < level[inside.get(b, "__init__")]]
    assert set(inside.values()) <= {*ROOMS, "__main__"}
    assert not upwards


def test_each_room_says_what_it_may_import() -> None:
    for number, room in enumerate(ROOMS):
        told = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text())) or ""
        allowed = ", ".join(ROOMS[:number]) or "nothing of the package"
        assert told.splitlines()[1:] == ["", f"May import: {allowed}."], room


def test_no_circles() -> None:
    try:
        TopologicalSorter(ARROWS).prepare()
    except CycleError as error:
        raise AssertionError(" → ".join(error.args[1])) from None


def test_no_two_files_of_tests_have_one_name() -> None:
    names = [path.name for path in PACKAGE.parent.joinpath("tests").rglob("test_*.py")]
    assert len(names) == len(set(names))
