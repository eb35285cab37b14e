"""Every program that this project starts gets an explicit standard input: never a terminal."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("schemas", "stages", "pipeline", "jobs", "benchmarks", "tests")
_ASYNC = {"create_subprocess_exec", "create_subprocess_shell"}
_TAKE_INPUT = {
    "subprocess": {"run", "Popen", "call", "check_call", "check_output"},
    "asyncio": _ASYNC,
    "asyncio.subprocess": _ASYNC,
}
# Calls that can't be checked: these pass on this process's own input.
_HAND_ON = {
    "os": {"system", "popen", "posix_spawn", "posix_spawnp"}
    | {f"spawn{how}" for how in ("l", "le", "lp", "lpe", "v", "ve", "vp", "vpe")},
    "subprocess": {"getoutput", "getstatusoutput"},
    "pty": {"spawn"},
}


def unnamed(source: str, place: str) -> list[str]:
    """Calls that leave a program's standard input unset, also in programs kept as text."""
    return [f"{place}:{line}: {what}" for line, what in _found(ast.parse(source))]


def _found(tree: ast.AST) -> Iterator[tuple[int, str]]:
    names = _names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            module, name = _called(node.func, names)
            given = {word.arg for word in node.keywords}
            if name in _HAND_ON.get(module, ()) or (
                name in _TAKE_INPUT.get(module, ()) and not given & {"stdin", "input"}
            ):
                yield node.lineno, f"{module}.{name}"
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and ("import " in node.value)
        ):
            try:
                inner = ast.parse(node.value)
            except SyntaxError:
                continue
            yield from ((node.lineno + line, what) for line, what in _found(inner))


def _names(tree: ast.AST) -> dict[str, tuple[str, str | None]]:
    """Names in the file that refer to a module, or to a function of one."""
    found: dict[str, tuple[str, str | None]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for one in node.names:
                found[one.asname or one.name] = (one.name, None)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for one in node.names:
                found[one.asname or one.name] = (node.module, one.name)
    return found


def _called(function: ast.expr, names: dict[str, tuple[str, str | None]]) -> tuple[str, str]:
    if isinstance(function, ast.Name):
        module, name = names.get(function.id, ("", None))
        return module, name or ""
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        return names.get(function.value.id, ("", None))[0], function.attr
    return "", ""


def test_every_started_program_has_an_explicit_standard_input():
    found = [
        call
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path != Path(__file__)
        for call in unnamed(path.read_text("utf-8"), str(path.relative_to(ROOT)))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "import subprocess\nsubprocess.run(['x'])",
        "import subprocess as s\ns.Popen(['x'], stdout=s.PIPE)",
        "from subprocess import check_output as out\nout(['x'])",
        "import os\nos.system('x')",
        "from asyncio import create_subprocess_exec\ncreate_subprocess_exec('x')",
        "PROGRAM = 'import subprocess\\nsubprocess.run([1])'",
    ],
)
def test_call_without_standard_input_is_found(source):
    assert len(unnamed(source, "here.py")) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import subprocess\nsubprocess.run(['x'], stdin=subprocess.DEVNULL)",
        "import subprocess\nsubprocess.run(['x'], input='y')",
        "import asyncio\nasyncio.run(x())",
    ],
)
def test_call_with_standard_input_is_not_found(source):
    assert unnamed(source, "here.py") == []
