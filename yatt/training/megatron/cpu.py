"""Lets megatron.core run on a CPU over gloo, by an import hook; nothing happens where CUDA exists.

megatron.core names the CUDA device in its source: as the string "cuda", as `torch.cuda`, as `.cuda()`. The hook
rewrites exactly these, in modules of megatron.core only, while they are imported. Rewritten byte code is kept in a
cache of its own, since parsing takes seconds.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.abc
import importlib.machinery
import marshal
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import CodeType, ModuleType

import torch

PACKAGE = "megatron.core"
STAND_IN = "yatt.training.megatron.cuda_stand_in"
ALIAS = "_cuda_stand_in"
# Added before and after the source of a module.
ADDED = {
    # Its fuser is torch.compile: seconds to import, and a C++ compiler at run time.
    "megatron.core.jit": ("", "disable_jit_fuser()"),
    # Without TransformerEngine this module of 0.16.1 reads a name that it never defines.
    "megatron.core.transformer.moe.moe_utils": ("te_general_gemm = None", ""),
}


class _Rewrite(ast.NodeTransformer):
    """Puts the stand-in where the source names CUDA."""

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if node.value == "cuda":
            return ast.copy_location(ast.Constant("cpu"), node)
        if isinstance(node.value, str) and node.value.startswith("torch.cuda.") and node.value.endswith("Tensor"):
            return ast.copy_location(ast.Constant(node.value.replace(".cuda.", ".")), node)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        if node.attr == "is_cuda" and isinstance(node.ctx, ast.Load):
            return ast.copy_location(ast.Constant(True), node)
        if node.attr == "cuda" and isinstance(node.value, ast.Name) and node.value.id == "torch":
            return ast.copy_location(ast.Name(ALIAS, node.ctx), node)
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        if node.module == "torch.cuda":
            node.module = STAND_IN
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        for keyword in node.keywords:
            if keyword.arg == "pin_memory" and isinstance(keyword.value, ast.Constant):
                keyword.value = ast.copy_location(ast.Constant(False), keyword.value)
        if isinstance(node.func, ast.Attribute) and node.func.attr == "cuda":
            moved = ast.Call(ast.Attribute(node.func.value, "to", ast.Load()), [ast.Constant("cpu")], [])
            return ast.copy_location(moved, node)
        return node


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles rewritten source; the ordinary .pyc files are neither read nor written."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        source = self.get_data(path)
        digest = hashlib.sha256(b"\0".join([source, path.encode(), _OWN_SOURCE, sys.version.encode()])).hexdigest()
        cached = _cache_folder() / digest
        try:
            code: CodeType = marshal.loads(cached.read_bytes())
        except (OSError, ValueError, EOFError, TypeError):
            code = _compile(source, path, *ADDED.get(fullname, ("", "")))
            _keep(cached, marshal.dumps(code))
        return code


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != PACKAGE and not fullname.startswith(PACKAGE + "."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def _compile(source: bytes, path: str, before: str, after: str) -> CodeType:
    tree = _Rewrite().visit(ast.parse(source, path))
    start = 0
    for node in tree.body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not docstring and not (isinstance(node, ast.ImportFrom) and node.module == "__future__"):
            break
        start += 1
    tree.body[start:start] = ast.parse(f"import {STAND_IN} as {ALIAS}\n{before}").body
    tree.body += ast.parse(after).body
    return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "yatt" / "megatron-on-cpu"


def _keep(path: Path, data: bytes) -> None:
    """Write whole or not at all; a cache that cannot be written only costs time."""
    aside = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(data)
        aside.replace(path)
    except OSError:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def install() -> None:
    """Retarget megatron.core at the CPU where there is no CUDA. Must run before its first import; idempotent."""
    if torch.cuda.is_available() or any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    if PACKAGE in sys.modules:
        raise ImportError(
            "megatron.core was imported before yatt.training.megatron; import yatt.training.megatron first"
        )
    sys.meta_path.insert(0, _Finder())


_OWN_SOURCE = Path(__file__).read_bytes()
