"""YAML as YAML 1.2's core schema reads it, both ways: 010 is ten, and `no`, 1:30:00 and 2026-11-28 are texts."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml

_TAG = "tag:yaml.org,2002:"
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
_INT = re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z")
_FLOAT = re.compile(
    r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
)
_NULL = re.compile(r"(?:~|null|Null|NULL|)\Z")
_MERGE = re.compile(r"<<\Z")
# (kind, its plain scalars, the characters that they begin with), the first that fits; merge keys are of YAML 1.1.
_KINDS = (
    ("bool", _BOOL, "tTfF"),
    ("int", _INT, "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
    ("null", _NULL, ["~", "n", "N", ""]),
    ("merge", _MERGE, "<"),
)


def read(text: str) -> Any:
    """The value of a document. Raises ValueError in one line that begins with `line N: ` where the line is known."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(where + " ".join(str(getattr(error, "problem", None) or error).split())) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def write(value: Any) -> str:
    """A document of plain values that `read` reads back; readers of YAML 1.1 see the same."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def inline(value: Any) -> str:
    """A value in one line, as a list or a word of the command line holds it."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=10_000)
    return str(text).removesuffix("...\n").strip()


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, and every tag that is not of JSON's types."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}
    yaml_constructors: ClassVar[dict[str | None, Any]] = {
        _TAG + kind: yaml.SafeLoader.yaml_constructors[_TAG + kind] for kind in ("str", "seq", "map", "null")
    } | {None: yaml.SafeLoader.construct_undefined}

    # When it is composed: what merge keys bring comes later, and may be given anew.
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(str(key.value))
        return node

    def construct_number(self, node: yaml.ScalarNode) -> bool | int | float:
        """A scalar of the tag's kind, whether the tag is written or not."""
        kind = node.tag.removeprefix(_TAG)
        text = str(self.construct_scalar(node)).lower()
        pattern = {"bool": _BOOL, "int": _INT, "float": _FLOAT}[kind]
        try:
            if not pattern.match(text):
                raise ValueError
            if kind == "bool":
                return text == "true"
            if kind == "float":
                return float(text.replace(".inf", "inf").replace(".nan", "nan"))
            return int(text.removeprefix("0o"), 8) if text.startswith("0o") else int(text, 16 if "x" in text else 10)
        except ValueError:  # int's, too: of a number of thousands of digits
            problem = f"{text[:40]!r} is no {kind} of YAML 1.2"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None


class _Dumper(yaml.SafeDumper):
    """Quotes a text that either version would read as something else."""


for _kind, _pattern, _first in _KINDS:
    _Loader.add_implicit_resolver(_TAG + _kind, _pattern, list(_first))
    _Dumper.add_implicit_resolver(_TAG + _kind, _pattern, list(_first))
for _kind in ("bool", "int", "float"):
    _Loader.add_constructor(_TAG + _kind, _Loader.construct_number)
