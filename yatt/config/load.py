"""From a YAML file and `key=value` words to a checked Config, and back to YAML."""

from __future__ import annotations

import difflib
import math
import operator
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from yatt.config import yaml_core
from yatt.config.paths import absolute, expanded, found_beside
from yatt.config.schema import Config
from yatt.config.secrets import secrets
from yatt.errors import ConfigError

REQUIRED = "required"
_OBEYS = {"ge": operator.ge, "gt": operator.gt, "le": operator.le, "lt": operator.lt}
BESIDE_SAVED = ("metrics.jsonl", "complete.json")
"""Files beside a config that a run, or its checkpoint, has written."""
MOST_MEANT = 3
"""Settings named where one of them was meant."""
_BOUNDS = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
_SAID = {"yes": True, "no": False, "on": True, "off": False, "y": True, "n": False, "true": True, "false": False}
_PLAIN = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


class Setting(NamedTuple):
    """One line of the reference of settings. `name` is dotted; `NAME` and `[]` stand for a key and a list item."""

    name: str
    takes: str
    default: Any
    description: str


def load_config(
    path: str | None,
    overrides: Sequence[str],
    settings: Mapping[str, Any] | None = None,
    choose: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
) -> Config:
    """The defaults, then the YAML file, then the `key=value` words, then nested `settings`, each over what came before.

    All are read as YAML 1.2, the words' values too (`a.b=null`, `data.tasks=[...]`), but a text stands there as it is.
    Paths are taken from the file's folder, those of words and `settings` from the working directory
    (`yatt.config.paths`). `choose` is shown the nested values that were given, and says what stands in the defaults'
    place. Raises ConfigError with one line per mistake.
    """
    values, mistakes = _read_yaml(path) if path is not None else {}, list[str]()
    if path is not None:
        try:
            saved = _is_saved(Path(path))
            values = expanded(values, "" if saved else os.path.dirname(path))
            values = found_beside(values, os.path.dirname(path)) if saved else values
        except ConfigError as error:
            mistakes.append(f"{path}: {error}")
    given = [name for name, _ in leaves(settings or {})]
    for word in overrides:
        try:
            key, value = _parse_word(word)
            values = _over(values, expanded(nest(key, value), ""))
            given.append(key)
        except ConfigError as error:
            mistakes.append(str(error))
    try:
        values = _over(values, expanded(settings or {}, ""))
        if choose is not None and not mistakes:
            values = merged(choose(values), values)
        config = _validate(values, path, given)
    except ConfigError as error:
        mistakes.append(str(error))
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return config


def settings_in(words: Sequence[str]) -> dict[str, Any]:
    """The settings that `key=value` words give, by their dotted names: those of a section one by one."""

    def settings(name: str, value: Any) -> Iterator[tuple[str, Any]]:
        field = _locate(name.split("."))[1]
        if isinstance(value, Mapping) and field is not None and _section(field.annotation):
            for key, inner in value.items():
                yield from settings(f"{name}.{key}", inner)
        else:
            yield name, value

    return dict(setting for word in words for setting in settings(*_parse_word(word)))


def save_config(config: Config, path: str | Path) -> None:
    """Write every setting, resolved and with absolute paths, as YAML that `load_config` reads back, from anywhere. A
    file with a secret in it is for its owner alone."""
    values = config.model_dump(mode="json")
    Path(path).touch()
    if any(secrets(values)):
        Path(path).chmod(0o600)
    Path(path).write_text(yaml_core.write(absolute(values)), encoding="utf-8")


def _is_saved(file: Path) -> bool:
    """Whether a run or a checkpoint has written the file. What is relative in it, as older versions left it, started at
    the working directory."""
    return any((file.parent / name).is_file() for name in BESIDE_SAVED)


def describe(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[Setting]:
    """Every setting there is, in the order of the schema."""
    for key, field in model.model_fields.items():
        name, inner, item = prefix + key, _section(field.annotation), _item(field.annotation)
        if inner is not None:
            yield from describe(inner, name + ".")
        elif item is not None:
            yield from describe(item[1], f"{name}{item[0]}.")
        else:
            default = REQUIRED if field.is_required() else field.get_default(call_default_factory=True)
            yield Setting(name, _expected(field), default, field.description or "")


# --- reading ---------------------------------------------------------------------------------------------------------


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        values = yaml_core.read(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"cannot read the config {path}: {reason}") from None
    except ValueError as error:
        problem = str(error)
        if line := re.match(r"line (\d+): ", problem):
            path, problem = f"{path}:{line[1]}", problem[line.end() :]
        raise ConfigError(f"{path} is not valid YAML: {problem}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {_shown(values)}; it must hold sections of settings, such as `train:`")
    return values


def _parse_word(word: str) -> tuple[str, Any]:
    key, equals, text = word.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ConfigError(f"{word!r} is not a setting; write key=value, such as train.steps=100")
    _, field, depth = _locate(key.split("."))
    if field is None and depth == 0:
        raise ConfigError(f"unknown setting {key}{_suggestion(key)}")
    members = _members(field.annotation if field is not None else None)
    textual = str in members
    try:
        value = yaml_core.read(text)
    except ValueError as error:
        if textual:
            return key, text
        problem = str(error).removeprefix("line 1: ")
        raise ConfigError(f"{key}={text} cannot be read as YAML: {problem}; quote the value") from None
    listed = isinstance(value, list) and any(get_origin(member) is list for member in members)
    quoted = isinstance(value, str) and text.lstrip().startswith(("'", '"'))
    nothing = value is None and not text.strip().startswith("#")
    # To a text setting 2024, 1e3, `a: b` and `a # b` are texts, as they stand on the command line.
    return key, text.strip() if textual and not (nothing or quoted or listed) else value


def leaves(values: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    """What nested `values` hold, by dotted names."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{at}{key}.")
        else:
            yield f"{at}{key}", value


def nest(key: str, value: Any) -> dict[str, Any]:
    """One value under its dotted name."""
    *sections, last = key.split(".")
    values = {last: value}
    for section in reversed(sections):
        values = {section: values}
    return values


def _over(values: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """Merged, an environment that is a text alone being the section that it is short for."""

    def long(given: dict[str, Any]) -> dict[str, Any]:
        short = given.get("environment")
        return {**given, "environment": {"function": short}} if isinstance(short, str) else given

    return merged(long(values), long(others))


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Both, with sections merged. A new mapping: YAML's aliases may have put one under several names."""
    values = dict(under)
    for key, value in over.items():
        lower = values.get(key)
        values[key] = merged(lower, value) if isinstance(value, Mapping) and isinstance(lower, Mapping) else value
    return values


# --- checking --------------------------------------------------------------------------------------------------------


def _validate(values: dict[str, Any], path: str | None, given: Sequence[str]) -> Config:
    values = _with_all_sections(values, Config)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        # One setting of several types has one error for each: the first line says it all.
        mistakes = dict(reversed([_explain(item, values) for item in error.errors()]))

    def place(name: str) -> str:
        from_word = any(name == key or name.startswith((key + ".", key + "[")) for key in given)
        return "" if from_word or path is None else f"{path}: "

    raise ConfigError("\n".join(place(name) + mistakes[name] for name in reversed(mistakes)))


def _explain(item: Any, values: Mapping[str, Any]) -> tuple[str, str]:
    name, field, depth = _locate(item["loc"])
    if item["type"] == "extra_forbidden":
        return name, f"unknown setting {name}{_suggestion(name)}"
    if item["type"] == "value_error":
        at = ".".join(map(str, item["loc"][:-2])) + ": " if item["loc"][-1] == "[key]" else f"{name}="
        return name, f"{at}{_shown(item['input'])} {item['ctx']['error']}"
    expected = _expected(field)
    if item["type"] == "missing" and depth == len(item["loc"]):
        return name, f"{name} is not set and has no default; set {name}=VALUE ({expected})"
    value: Any = values
    for key in item["loc"][:depth]:
        value = value[key]
    return name, f"{name}={_shown(value)} is not {expected}{_inside(name, field, value) or _remedy(value, field)}"


def _remedy(value: Any, field: FieldInfo | None) -> str:
    """How a value was probably meant, where there is one way to write it that would be taken."""
    members = _members(field.annotation) if field is not None else ()
    texts = list[str] in members
    if texts and isinstance(value, str):
        meant = "[" + yaml_core.inline(value) + "]"
    elif texts and isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        meant = yaml_core.inline([str(item).lower() if isinstance(item, bool) else str(item) for item in value])
    elif bool in members and isinstance(value, str) and value.lower() in _SAID:
        meant = str(_SAID[value.lower()]).lower()
    elif isinstance(value, str | float) and (int in members or float in members):
        meant = _number_meant(value, whole=int in members)
        meant = meant if meant and _within(float(meant), field) else ""
    else:
        meant = ""
    return f"; write {meant}" if meant else ""


def _within(amount: float, field: FieldInfo | None) -> bool:
    """Whether a number keeps the bounds of a setting."""
    metadata = field.metadata if field is not None else []
    return all(obeys(amount, getattr(m, key)) for m in metadata for key, obeys in _OBEYS.items() if hasattr(m, key))


def _number_meant(value: str | float, *, whole: bool) -> str:
    """The number that 1e3 (for a whole one), '5', 1_000 (in YAML 1.1 a number) or 1:30:00 (there, base 60) say."""
    text = str(value)
    if re.fullmatch(r"\d{1,4}(:[0-5]?\d){1,2}", text):
        return str(reduce(lambda total, part: 60 * total + int(part), text.split(":"), 0))
    plain = text.replace("_", "") if re.fullmatch(r"[-+.\deE_]+", text) else ""
    try:
        amount = float(plain)
    except ValueError:
        return ""
    if not math.isfinite(amount) or (whole and (amount % 1 or abs(amount) >= 1e15)):
        return ""
    return f"{amount:.0f}" if whole else plain


def _suggestion(name: str) -> str:
    """The settings with the same last word, and of those the ones that share most of the others; where there are
    none, of the last word that is nearest; else the setting or section whose whole name is nearest."""
    settings = [setting.name for setting in describe()]
    names = [*settings, *dict.fromkeys(full.rpartition(".")[0] for full in settings if "." in full)]
    tail = name.rpartition(".")[2]
    shared = {full: len({*full.split(".")} & {*name.split(".")}) for full in names if full.rpartition(".")[2] == tail}
    if shared:
        near = [full for full, words in shared.items() if words == max(shared.values())][:MOST_MEANT]
        return f"; did you mean {' or '.join(near)}?"
    tails = [full.rpartition(".")[2] for full in names]
    if close := difflib.get_close_matches(tail, tails, n=1, cutoff=0.75):
        return _suggestion(name.removesuffix(tail) + close[0])
    near = [
        full
        for full in difflib.get_close_matches(name, names, n=3, cutoff=0.6)
        if difflib.SequenceMatcher(None, tail, full.rpartition(".")[2]).ratio() >= 0.6
    ]
    return f"; did you mean {near[0]}?" if near else "; `yatt init` writes all there are"


def _inside(name: str, field: FieldInfo | None, value: Any) -> str:
    """The first setting of a section that the value would fit, where it was given for the section."""
    section = _section(field.annotation) if field is not None else None
    for key, inner in section.model_fields.items() if section is not None else ():
        try:
            TypeAdapter(Annotated[inner.annotation, inner]).validate_python(value, strict=True)  # type: ignore[arg-type]
            return f"; did you mean {name}.{key}={_shown(value)}?"
        except ValidationError:
            continue
    return ""


def _with_all_sections(values: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """`data:` with nothing under it, or no `data:` at all, is a section left at its defaults."""
    result = {str(key): value for key, value in values.items()}
    for key, field in model.model_fields.items():
        inner, value = _section(field.annotation), result.get(key)
        if inner is not None and (value is None or isinstance(value, Mapping)):
            result[key] = _with_all_sections(value or {}, inner)
    return result


# --- the schema as words ---------------------------------------------------------------------------------------------


def _members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section an annotation is, if it is one."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _item(annotation: Any) -> tuple[str, type[BaseModel]] | None:
    """How an item of a list or mapping of sections is written, and its section."""
    arguments = get_args(annotation)
    inner = _section(arguments[-1]) if arguments else None
    if inner is None:
        return None
    return ("[]" if get_origin(annotation) is list else ".NAME"), inner


def _locate(loc: Sequence[int | str]) -> tuple[str, FieldInfo | None, int]:
    """The dotted name of a location, cut at the setting it falls in; that setting, if it is one; and how much of the
    location names it, 0 where nothing has that name."""
    model: type[BaseModel] | None = Config
    name, field, depth = "", None, 0
    while depth < len(loc) and model is not None:
        key = str(loc[depth])
        name, depth = f"{name}.{key}" if name else key, depth + 1
        field = model.model_fields.get(key)
        if field is None:
            return ".".join([name, *map(str, loc[depth:])]), None, 0
        model, item = _section(field.annotation), _item(field.annotation)
        if item is not None and depth < len(loc):
            name += f"[{loc[depth]}]" if item[0] == "[]" else f".{loc[depth]}"
            model, field, depth = item[1], None, depth + 1
    return name, field, depth


def _expected(field: FieldInfo | None) -> str:
    """The values that a setting takes, in words: `a whole number >= 1`."""
    if field is None or _section(field.annotation):
        return "a section of settings"
    words = " or ".join(_words(member) for member in _members(field.annotation))
    bounds = [f"{sign} {getattr(m, key)}" for m in field.metadata for key, sign in _BOUNDS if hasattr(m, key)]
    pattern = next((m.pattern for m in field.metadata if getattr(m, "pattern", None)), None)
    return " ".join([words, " and ".join(bounds), f"matching {pattern}" if pattern else ""]).replace("  ", " ").strip()


def _words(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is list:
        inner = arguments[0]
        return "a list of " + ("sections" if _section(inner) else "texts" if inner is str else _words(inner))
    if origin is tuple:
        return f"a list of {len(arguments)} numbers"
    return "a mapping"


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, (str, list, dict)) else {None: "null"}.get(value, str(value))
    text = text.lower() if isinstance(value, bool) else text
    return text if len(text) <= 60 else text[:57] + "..."
