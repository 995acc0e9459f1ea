"""Imports go down the layers only, without cycles, at the top of the file; the heart and the settings stay light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]

# The longest prefix of a module's name says its layer. An import goes to the same layer or a lower one.
LAYERS = {
    "yatt": 0,
    "yatt.types": 0,
    "yatt.moments": 0,
    "yatt.reports": 0,
    "yatt.config": 0,
    "yatt.models": 0,
    "yatt.errors": 0,
    "yatt.checksums": 0,
    "yatt.text": 0,
    "yatt.config.case": 1,
    "yatt.config.machine_rules": 1,
    "yatt.config.lora_rules": 1,
    "yatt.config.vision_rules": 1,
    "yatt.config.rules": 1,  # they ask the placement whether a run fits
    "yatt.config.placement": 1,
    "yatt.config.engines": 1,
    "yatt.algorithm": 1,
    "yatt.balance": 1,
    "yatt.keeper": 0,
    "yatt.user_functions": 1,
    "yatt.user_processes": 1,
    "yatt.packed_objects": 1,
    "yatt.histogram": 1,
    "yatt.intervals": 1,
    "yatt.placement": 1,
    "yatt.protocols": 2,
    "yatt.generation": 3,
    "yatt.generation.kind": 1,  # what an engine says of itself without being imported
    "yatt.generation.table": 1,
    "yatt.generation.sglang.arguments": 1,
    "yatt.generation.sglang.environment": 1,
    "yatt.generation.vllm.arguments": 1,
    "yatt.generation.vllm.environment": 1,
    "yatt.training": 3,
    "yatt.reward": 3,
    "yatt.weights": 3,
    "yatt.data": 3,
    "yatt.environments": 3,
    "yatt.vision": 3,
    "yatt.vision.processor": 1,  # what a folder's files say, for the rules
    "yatt.controller": 4,
    "yatt.supervisor": 4,
    "yatt.recovery": 4,
    "yatt.revival": 4,
    "yatt.diagnosis": 4,
    "yatt.cluster": 5,
    "yatt.simulation": 5,
    "yatt.faces": 6,
    "yatt.api": 6,
    "yatt.called": 6,
    "yatt.cli": 6,
    "yatt.__main__": 6,
}
BACKENDS = (
    "yatt.generation",
    "yatt.training",
    "yatt.reward",
    "yatt.weights",
    "yatt.data",
    "yatt.vision",
    "yatt.environments",
)
HEART = ("yatt.controller", "yatt.supervisor", "yatt.recovery", "yatt.revival", "yatt.diagnosis")
HEAVY = ("torch", "ray", "vllm", "sglang", "megatron", "transformers", "datasets", "reasoning_gym", "accelerate")
# Each imports a heavy library that most users of the module never need.
LATE_IMPORTS = {
    "yatt/data/rows.py",  # datasets and pyarrow
    "yatt/data/source.py",  # reasoning-gym
    "yatt/reward/mixed.py",  # openai
    "yatt/training/attention.py",  # torch's compiler
}


class Import(NamedTuple):
    """One module named by an import statement, with `late` inside a function and `typing` under TYPE_CHECKING."""

    path: str
    line: int
    name: str
    late: bool
    typing: bool

    def __str__(self) -> str:
        return f"{self.path}:{self.line} imports {self.name}"


def within(name: str, *prefixes: str) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def layer(module: str) -> int:
    """The layer of the longest prefix in the table; a module that only `yatt` itself matches has none."""
    parts = module.split(".")
    for size in range(len(parts), 1, -1):
        if ".".join(parts[:size]) in LAYERS:
            return LAYERS[".".join(parts[:size])]
    assert module == "yatt", f"{module} has no layer: add it to LAYERS"
    return 0


@cache
def modules() -> dict[str, Path]:
    """Module name -> file, of everything in the package."""
    found = {}
    for path in sorted((ROOT / "yatt").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def statements(node: ast.AST, late: bool = False, typing: bool = False) -> Iterator[tuple[ast.stmt, bool, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, late, typing
        inside = late or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        guarded = typing or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
        yield from statements(child, inside, guarded)


def imports_of(module: str, source: str, path: str) -> Iterator[Import]:
    for node, late, typing in statements(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            assert isinstance(node, ast.ImportFrom)
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write the full name"
            targets = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [t if t in modules() else str(node.module) for t in targets]
        for name in dict.fromkeys(names):
            yield Import(path, node.lineno, name, late, typing)


@cache
def all_imports() -> dict[str, tuple[Import, ...]]:
    return {
        module: tuple(imports_of(module, path.read_text(), str(path.relative_to(ROOT))))
        for module, path in modules().items()
    }


def offenders(of: tuple[str, ...], banned: tuple[str, ...], *, typing: bool) -> list[str]:
    """Imports of a banned library in these modules; those for type checkers only count where `typing` is set."""
    return [
        str(i)
        for module, imports in all_imports().items()
        for i in imports
        if within(module, *of) and within(i.name, *banned) and (typing or not i.typing)
    ]


def test_every_module_has_a_layer_and_imports_go_down() -> None:
    wrong = [
        f"{i} (layer {layer(module)} imports layer {layer(i.name)})"
        for module, imports in all_imports().items()
        for i in imports
        if within(i.name, "yatt") and layer(i.name) > layer(module)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_cycles() -> None:
    graph = {
        module: {i.name for i in imports if within(i.name, "yatt") and not i.typing and i.name != module}
        for module, imports in all_imports().items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError("imports in a circle: " + " -> ".join(error.args[1])) from None


def test_imports_stand_at_the_top() -> None:
    late = [i for imports in all_imports().values() for i in imports if i.late]
    unlisted = [str(i) for i in late if i.path not in LATE_IMPORTS]
    assert not unlisted, "\n".join(unlisted)
    assert {i.path for i in late} == LATE_IMPORTS, "LATE_IMPORTS lists a file that has none"


def test_layer_0_imports_nothing_heavy() -> None:
    light = tuple(name for name, level in LAYERS.items() if level == 0 and name != "yatt")
    assert offenders(light, HEAVY, typing=False) == []


def test_mathematics_and_contracts_touch_no_engine() -> None:
    names = tuple(name for name, level in LAYERS.items() if level in (1, 2))
    assert offenders(names, tuple(name for name in HEAVY if name != "torch"), typing=True) == []


def test_the_heart_imports_contracts_only() -> None:
    engines = tuple(name for name in HEAVY if name != "torch")
    assert offenders(HEART, (*engines, "torch.distributed", *BACKENDS), typing=True) == []


ENGINE_NAMES = re.compile(r"vllm|sglang", re.IGNORECASE)
WHAT_ONE_MAY_CHOOSE = ("yatt/config/rollout.py", ('Literal["vllm", "sglang"]', 'Field("vllm"'))
"""What outside `yatt/generation` lists the engines, and says which one is the default."""


def test_only_generation_names_an_engine() -> None:
    found = []
    schema, allowed = WHAT_ONE_MAY_CHOOSE
    for path in sorted((ROOT / "yatt").rglob("*.py")):
        name, source = str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
        if name.startswith("yatt/generation/"):
            continue
        for words in allowed if name == schema else ():
            assert source.count(words) == 1
            source = source.replace(words, "")
        lines = enumerate(source.splitlines(), 1)
        found += [f"{name}:{number}: {line.strip()}" for number, line in lines if ENGINE_NAMES.search(line)]
    assert not found, "\n".join(found)


def test_only_the_runtimes_know_ray() -> None:
    others = tuple(name for name in LAYERS if name not in ("yatt", "yatt.cluster", "yatt.faces"))
    assert offenders(others, ("ray",), typing=True) == []


def test_settings_and_command_line_load_no_heavy_library() -> None:
    light = [
        "yatt.config.load",
        "yatt.config.rules",
        "yatt.types",
        "yatt.errors",
        "yatt.protocols",
        "yatt.cli",
        "yatt.api",
    ]
    code = f"import sys, {', '.join(light)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert not set(done.stdout.split()) & set(HEAVY)


def test_the_rules_themselves_see_what_they_must() -> None:
    source = (
        "from typing import TYPE_CHECKING\n"
        "from yatt import errors\n"
        "if TYPE_CHECKING:\n    import torch\n"
        "def f():\n    import ray.util\n"
    )
    found = {(i.name, i.late, i.typing) for i in imports_of("yatt.types", source, "x.py")}
    assert found == {
        ("typing", False, False),
        ("yatt.errors", False, False),
        ("torch", False, True),
        ("ray.util", True, False),
    }
    assert layer("yatt.training.megatron.step") == 3 and layer("yatt.config.load") == 0
    assert within("torch.distributed.rpc", "torch.distributed") and not within("torchvision", "torch")
