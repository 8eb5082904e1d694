"""Rules of the house that no linter knows. The laws of who imports whom are import-linter's."""

import ast
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

from schemas import errors, limits

ROOT = Path(__file__).parents[1]
PACKAGES = ("schemas", "tracker", "aggregator", "deploy", "loadtests")
LINES_MAX = 70
VAGUE = {"utils", "util", "helpers", "helper", "manager", "managers", "common", "misc", "base"}
PRODUCT = sorted(chain.from_iterable((ROOT / package).rglob("*.py") for package in PACKAGES))
EVERYTHING = [*PRODUCT, *sorted((ROOT / "tests").rglob("*.py"))]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", PRODUCT, ids=named)
def test_no_function_is_too_long_to_be_seen_at_once(path: Path) -> None:
    functions = (node for node in nodes(path) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert {name: length for name, length in lengths.items() if length > LINES_MAX} == {}


@pytest.mark.parametrize("path", EVERYTHING, ids=named)
def test_every_task_is_kept_by_whoever_began_it(path: Path) -> None:
    """The loop holds tasks weakly: one that nobody keeps may vanish, errors and all. (A TaskGroup keeps its own.)"""
    begun = [
        node.lineno
        for node in nodes(path)
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and re.fullmatch(r"(asyncio|.*loop(\(\))?)\.(create_task|ensure_future)", ast.unparse(node.value.func))
    ]
    assert begun == []


@pytest.mark.parametrize("path", PRODUCT, ids=named)
def test_every_module_and_class_is_named_for_what_it_does(path: Path) -> None:
    classes = [node.name for node in nodes(path) if isinstance(node, ast.ClassDef)]
    words = {word.lower() for name in (path.stem, *classes) for word in re.findall(r"[A-Z]?[a-z]+", name)}
    assert words & VAGUE == set()


def tracked_text() -> list[Path]:
    kinds = ("py", "md", "toml", "sql", "yml", "yaml", "json", "cfg")
    found = chain.from_iterable(ROOT.glob(f"{place}*.{kind}") for kind in kinds for place in ("", "*/**/", ".ci/"))
    ours = (path for path in found if path.relative_to(ROOT).parts[0] in (*PACKAGES, "tests") or path.parent == ROOT)
    return sorted({path for path in ours if path.name != Path(__file__).name})


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    home = re.compile(r"(?<![\w.])/(?:home|Users|root|work|mnt)/\w")
    assert [named(path) for path in tracked_text() if home.search(path.read_text())] == []


def test_every_limit_is_kept_somewhere() -> None:
    used = "\n".join(path.read_text() for path in PRODUCT if path.name != "limits.py")
    names = [name for name in vars(limits) if name.isupper()]
    assert [name for name in names if not re.search(rf"\b{name}\b", used)] == []


def test_every_limit_has_its_reason_beside_it() -> None:
    lines = (ROOT / "schemas" / "limits.py").read_text().splitlines()
    assert [line for line in lines if re.match(r"[A-Z_]+ = ", line) and "  # " not in line] == []


def test_every_error_code_is_given_somewhere() -> None:
    used = "\n".join(path.read_text() for path in PRODUCT if path != ROOT / "schemas" / "errors.py")
    assert [code for code in errors.STATUS if f'"{code}"' not in used] == []


def test_every_code_that_is_refused_with_has_its_status() -> None:
    given = [
        (named(path), node.args[0].value)
        for path in PRODUCT
        if "schemas.errors import" in path.read_text()
        for node in nodes(path)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("Refused", "errors.Refused")
        and node.args
        and isinstance(node.args[0], ast.Constant)
    ]
    assert [found for found in given if found[1] not in errors.STATUS] == []
    assert given
