"""Imports point inwards: federator -> core <- silo, and what is heavy or dangerous stays where it belongs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = {
    path.relative_to(ROOT).as_posix(): path
    for folder in ("core", "federator", "silo", "bench")
    for path in sorted((ROOT / folder).rglob("*.py"))
}

OUTSIDE = {  # a folder -> what it must not know
    "core": {"feddiff.federator", "feddiff.silo", "feddiff.bench"},
    "federator": {"feddiff.silo", "feddiff.bench"},
    "silo": {"feddiff.federator", "feddiff.bench"},
    "bench": set[str](),
}
SPEAKS_GRPC = {
    "core/peer_wire.py",
    "core/tls.py",
    "core/wire.py",
    "federator/daemon.py",
    "federator/desk.py",
    "federator/enroll.py",
    "federator/metrics.py",
    "federator/operator.py",
    "federator/peering.py",
    "federator/probe.py",
    "federator/service.py",
    "federator/tasks.py",
    "silo/client.py",
    "silo/enroll.py",
    "silo/peers/liaison.py",
    "silo/peers/server.py",
    "silo/probe.py",
}
PURE = {
    "core/segments.py",
    "core/transfer.py",
    "core/peers.py",
    "core/ranges.py",
    "federator/audit.py",
    "federator/budget.py",
    "federator/checking.py",
    "federator/ownership.py",
    "federator/eta.py",
    "federator/planner.py",
    "federator/rounds.py",
    "federator/sampling.py",
    "federator/weighting.py",
    "silo/schedule.py",
    "silo/session.py",
}
HEAVY = {"torch", "diffusers", "sklearn", "matplotlib", "pydicom", "nibabel"}
HEAVY_MODULES = {
    "core/dcgan.py",
    "core/denoising.py",
    "core/diffusion.py",
    "core/network.py",
    "silo/adversaries.py",
    "silo/checkpoint.py",
    "silo/descent.py",
    "silo/group.py",
    "silo/optimizer.py",
    "silo/proximal.py",
    "silo/trainer.py",
}
"""Imported only inside functions of the others, so that a daemon starts and `--help` answers at once."""
MAX_LINES = 300


def imports(tree: ast.Module, loaded: bool = False) -> Iterator[str]:
    """Dotted names that a module imports; only those that importing it loads, if ``loaded``."""
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)
        elif loaded and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        elif loaded and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            nodes.extend(node.orelse)
            continue
        nodes.extend(ast.iter_child_nodes(node))


def among(name: str, packages: set[str]) -> bool:
    """Whether a dotted name is one of these packages or inside one."""
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


def found(source: str, packages: set[str], loaded: bool = False) -> list[str]:
    tree = ast.parse(SOURCES[source].read_text(encoding="utf-8"))
    return sorted(name for name in imports(tree, loaded) if among(name, packages))


@pytest.mark.parametrize(
    ("text", "everything", "loaded"),
    [
        ("import torch.nn as nn", {"torch.nn"}, {"torch.nn"}),
        ("from feddiff import silo", {"feddiff.silo"}, {"feddiff.silo"}),
        ("from ..silo import data", {"..silo.data"}, {"..silo.data"}),
        ("def f():\n    import torch", {"torch"}, set()),
        ("class A:\n    import torch", {"torch"}, {"torch"}),
        (
            "try:\n    import torch\nexcept ImportError:\n    import numpy",
            {"torch", "numpy"},
            {"torch", "numpy"},
        ),
        ("if TYPE_CHECKING:\n    import torch\nelse:\n    import numpy", {"torch", "numpy"}, {"numpy"}),
    ],
)
def test_imports_are_seen_wherever_they_stand(text: str, everything: set[str], loaded: set[str]) -> None:
    assert set(imports(ast.parse(text))) == everything
    assert set(imports(ast.parse(text), loaded=True)) == loaded


def test_a_name_is_among_packages_by_whole_words() -> None:
    assert among("feddiff.silo", {"feddiff.silo"})
    assert among("feddiff.silo.data", {"feddiff.silo"})
    assert not among("feddiff.silos", {"feddiff.silo"})


@pytest.mark.parametrize("source", SOURCES)
class TestSource:
    def test_knows_only_what_lies_inwards(self, source: str) -> None:
        assert not found(source, OUTSIDE[source.split("/")[0]])

    def test_names_modules_in_full(self, source: str) -> None:
        tree = ast.parse(SOURCES[source].read_text(encoding="utf-8"))
        assert not [name for name in imports(tree) if name.startswith(".")]

    def test_speaks_grpc_only_at_the_edges(self, source: str) -> None:
        if source not in SPEAKS_GRPC and not source.startswith("bench/"):
            assert not found(source, {"grpc", "grpc_health", "feddiff.v1"})

    def test_has_no_clock_thread_or_socket_if_pure(self, source: str) -> None:
        if source in PURE:
            assert not found(source, {"time", "threading", "socket", "asyncio", "datetime"})

    def test_pickles_nothing(self, source: str) -> None:
        assert not found(source, {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"})

    def test_loads_heavy_packages_late(self, source: str) -> None:
        if source not in HEAVY_MODULES:
            modules = {f"feddiff.{name.removesuffix('.py').replace('/', '.')}" for name in HEAVY_MODULES}
            assert not found(source, HEAVY | modules, loaded=True)

    def test_is_short(self, source: str) -> None:
        lines = SOURCES[source].read_text(encoding="utf-8").count("\n")
        assert lines <= MAX_LINES


def test_every_module_named_here_exists() -> None:
    assert not (SPEAKS_GRPC | PURE | HEAVY_MODULES) - SOURCES.keys()


@pytest.mark.parametrize("module", ["feddiff.federator.cli", "feddiff.silo.cli", "feddiff.bench.cli"])
def test_commands_start_light(module: str) -> None:
    late = {"numpy", "starlette", "uvicorn", *HEAVY}
    code = f"import sys, {module}; print(*sorted({late} & sys.modules.keys()))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert not run.stdout.split()
