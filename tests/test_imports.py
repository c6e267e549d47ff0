"""The one-way street: settings → attention → model → export → data → training → tasks → benchmark … cli."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import nystromformer

PACKAGE = Path(nystromformer.__file__).parent
LAYERS = (
    (
        "errors",
        "files",
        "heap",
        "hub",
        "intervals",
        "machine",
        "mechanisms",
        "pictures",
        "results",
        "tables",
        "threads",
    ),
    ("settings",),
    ("attention",),
    ("model",),
    ("export",),
    ("data",),
    ("training",),
    ("tasks",),
    ("benchmark",),
    ("reproduce",),
    ("cli", "__main__"),
)
"""Names directly below the package, from what everybody may import to what nobody does."""


class Import(NamedTuple):
    target: str
    line: int
    at_import: bool
    """Whether it runs when the module is imported: in no function, and not for type checkers alone."""


def name_of(path: Path, root: Path) -> str:
    parts = [root.name, *path.relative_to(root).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_in(source: str, modules: set[str], package: str = "nystromformer") -> Iterator[Import]:
    """Every import of the package's own modules, wherever it stands."""

    def walk(node: ast.AST, at_import: bool) -> Iterator[Import]:
        match node:
            case ast.If(test=ast.Name("TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                for statement in node.body:
                    yield from walk(statement, False)
                for statement in node.orelse:
                    yield from walk(statement, at_import)
                return
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                at_import = False
            case ast.Import():
                for name in node.names:
                    yield Import(name.name, node.lineno, at_import)
            case ast.ImportFrom():
                assert node.level == 0, f"line {node.lineno}: write imports from the package's name on"
                for name in node.names:
                    whole = f"{node.module}.{name.name}"
                    yield Import(whole if whole in modules else str(node.module), node.lineno, at_import)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, at_import)

    for found in walk(ast.parse(source), True):
        if found.target.partition(".")[0] == package:
            yield found


def all_imports(root: Path) -> dict[str, list[Import]]:
    paths = {name_of(path, root): path for path in sorted(root.rglob("*.py"))}
    return {
        name: list(imports_in(path.read_text(encoding="utf-8"), set(paths), root.name))
        for name, path in paths.items()
    }


def layer_of(module: str) -> int:
    """The package itself, which holds its version and loads its public names on use, is below all."""
    first = module.split(".")[1:2]
    if not first:
        return 0
    places = [number for number, names in enumerate(LAYERS) if first[0] in names]
    assert places, f"{module} has no place: write {first[0]!r} into a layer of LAYERS"
    return places[0]


def uphill(imports: dict[str, list[Import]]) -> list[str]:
    return [
        f"{module}, line {found.line}, imports {found.target}"
        for module, all_found in imports.items()
        if module != "nystromformer"
        for found in all_found
        if layer_of(found.target) > layer_of(module)
    ]


def cycle(imports: dict[str, list[Import]]) -> list[str]:
    """The modules of one cycle, in order; empty where there is none."""
    graph = {
        module: {one.target for one in found if one.at_import and one.target in imports} - {module}
        for module, found in imports.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


@pytest.fixture(scope="module")
def imports() -> dict[str, list[Import]]:
    return all_imports(PACKAGE)


def test_every_module_is_seen(imports):
    assert len(imports) > 150
    assert sum(map(len, imports.values())) > 500
    for module in imports:
        layer_of(module)


def test_nothing_imports_uphill(imports):
    assert uphill(imports) == []


def test_no_modules_import_each_other(imports):
    assert cycle(imports) == []


def test_what_the_check_sees(tmp_path):
    """An import uphill is seen in a function and for type checkers too; a cycle only where it would close."""
    root = tmp_path / "nystromformer"
    sources = {
        "__init__": "from nystromformer.tasks import b",
        "model/a": "def late():\n    from nystromformer.tasks.b import x",
        "model/c": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import nystromformer.tasks.b",
        "tasks/__init__": "",
        "tasks/b": "from nystromformer.tasks import d\nfrom nystromformer.model.a import late",
        "tasks/d": "if True:\n    from nystromformer.tasks.e import y",
        "tasks/e": "class Y:\n    import nystromformer.tasks.b",
    }
    for name, source in sources.items():
        path = root / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    imports = all_imports(root)
    assert uphill(imports) == [
        "nystromformer.model.a, line 2, imports nystromformer.tasks.b",
        "nystromformer.model.c, line 3, imports nystromformer.tasks.b",
    ]
    assert {f"nystromformer.tasks.{name}" for name in "bde"} == set(cycle(imports))
    (root / "tasks/e.py").write_text("def y():\n    import nystromformer.tasks.b")
    assert cycle(all_imports(root)) == []
