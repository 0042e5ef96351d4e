"""Configs: TOML onto frozen dataclasses, strictly, with all errors at once.

A file has run-level keys, `[options]` of its task, `[[variant]]` tables that change options by name, `[[expect]]`
tables with claims, `[sweep]` with axes, and `[quick]` with the overrides of `--quick`. A file with `extends = "FILE"`
has what that file beside it has, and overrides it as `[quick]` does: tables key by key, lists whole. Nothing is
compiled before the whole file, with every point of its sweep, is valid. With `task = "benchmark"` it has run-level
keys, `[[layer]]` tables and `[quick]`; see `experiments.benchmark.config`.
"""

import difflib
import inspect
import json
import math
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union

from experiments import data, plugins, reading, tasks
from experiments.benchmark.config import Benchmark, Layer
from experiments.claims import Claim
from experiments.resolved import Resolved
from experiments.sweeps import Point, points, text_of
from experiments.tasks import TASKS
from experiments.training import Kind

LONGEST = 16  # files that extend each other
LARGEST = 2**31 - 1  # of integers; arrays are counted with 32 bits
NAME = 100  # bytes of what becomes the name of a file
SEED = {"minimum": 0, "maximum": 2**32 - 1}  # beyond, different seeds may give equal keys


class ConfigError(Exception):
    """Everything that is wrong with a config, one line each."""

    def __init__(self, source: str, errors: Sequence[str]) -> None:
        self.errors = tuple(map(reading.short, errors))
        super().__init__("\n".join(f"{reading.short(source)}: {error}" for error in self.errors))


@dataclass(frozen=True)
class Variant:
    """One arm of an experiment: a name and the task's options, resolved."""

    name: str
    options: Any


@dataclass(frozen=True)
class Config(Resolved):
    """One experiment, resolved; fields without a default must be in the file."""

    steps: int = field(default=0, metadata={"minimum": 1})  # per seed; 0 of tasks that only measure
    chunk_steps: int = field(default=1, metadata={"minimum": 1})  # between evaluations
    # Vmapped; paired across variants.
    seeds: tuple[int, ...] = field(default=(0, 1, 2, 3, 4, 5), metadata=SEED)
    enable_x64: bool = False  # as of JAX: numbers of 64 bits
    classifier_steps: int = field(default=300, metadata={"minimum": 1})  # of the feature network
    classifier_seed: int = field(default=0, metadata=SEED)
    # 'source' and 'in_memory', see `experiments.data`, and the keywords of the source's function
    data: dict[str, Any] = field(default_factory=dict, metadata={"table": "data"})
    variants: tuple[Variant, ...] = field(default=(), metadata={"table": "variant"})
    claims: tuple[Claim, ...] = field(default=(), metadata={"table": "expect"})


def load(path: Path, settings: Sequence[str] = (), *, quick: bool = False) -> Config | Benchmark:
    """Reads and validates a config file.

    Args:
      path: of the TOML file.
      settings: `key.path=VALUE` texts that override the file; VALUE is TOML, a bare word is a string.
      quick: applies the file's `[quick]` table before `settings`.

    Raises:
      ConfigError: with every error of the file, not the first alone.
    """
    errors: list[str] = []
    table = _read(path, settings, errors, quick=quick)
    if "sweep" in table:
        del table["sweep"]
        errors.append(
            "sweep: the file holds several runs. Use the command 'sweep', or another file"
        )
    config = _build_file(table, errors)
    if errors or config is None:
        raise ConfigError(str(path), list(dict.fromkeys(errors)))
    return config


def load_sweep(
    path: Path, settings: Sequence[str] = (), axes: Sequence[str] = (), *, quick: bool = False
) -> list[tuple[Point, Config | Benchmark]]:
    """Reads a config file, and validates it at every point of its sweep.

    Args:
      path: of the TOML file.
      settings: as in `load`; they apply to all points.
      axes: `key.path=VALUE,VALUE,..` texts, axes beside those of the file; values as in `settings`.
      quick: as in `load`.

    Returns:
      Each point, its settings by dotted key, with its config.

    Raises:
      ConfigError: with every error of the file and of all points.
    """
    errors: list[str] = []
    table = _read(path, settings, errors, quick=quick)
    sweep = table.pop("sweep", {})
    for axis in axes:
        sweep = _with_axis(sweep, axis, errors)
    configs = []
    wrong: dict[str, list[Point]] = {}  # errors, and where
    every = points(sweep, errors)
    for point in every:
        at: list[str] = []
        changed = table
        for key, value in point.items():
            changed = _put(changed, key, value, at)
        config = _build_file(changed, at)
        for error in at:
            wrong.setdefault(error, []).append(point)
        if config is not None and not at:
            configs.append((point, config))
    for error, where in wrong.items():
        shared = {k: v for k, v in where[0].items() if all(point[k] == v for point in where)}
        everywhere = len(where) == len(every) or not shared
        errors.append(error if everywhere else f"at {text_of(shared)}: {error}")
    seen: set[str] = set()
    for point, config in configs:
        if config.digest in seen:
            errors.append(f"sweep: two points are the same run: {text_of(point)}")
        seen.add(config.digest)
    if errors:
        raise ConfigError(str(path), list(dict.fromkeys(errors)))
    return configs


def keywords(option: str, settings: Sequence[str]) -> dict[str, Any]:
    """Reads `key=VALUE` texts of an option of the command line, values as in `load`.

    Raises:
      ConfigError: if one is none.
    """
    errors: list[str] = []
    table: dict[str, Any] = {}
    for setting in settings:
        table = _with(table, setting, errors, option)
    if errors:
        raise ConfigError("command line", errors)
    return table


def _read(path: Path, settings: Sequence[str], errors: list[str], *, quick: bool) -> dict[str, Any]:
    """Returns the table of a file, with settings and, if `quick`, its `[quick]` table applied."""
    table = _table_of(path)
    overrides = table.pop("quick", None)
    if overrides is not None and not isinstance(overrides, dict):
        errors.append(f"quick: expected a table, got {overrides!r}")
    elif quick and overrides is None:
        errors.append("quick: the file has no [quick] table to apply")
    elif overrides is not None:
        # Both forms of the file are checked, whichever is run.
        merged = _merged(table, overrides)
        other = table if quick else merged
        _build_file({key: value for key, value in other.items() if key != "sweep"}, errors)
        table = merged if quick else table
    for setting in settings:
        table = _with(table, setting, errors)
    return table


def _table_of(path: Path, beyond: Sequence[Path] = ()) -> dict[str, Any]:
    """Returns the table of a file over those that it extends; `beyond` are the files that extend it."""
    try:
        table = reading.toml(path)
    except reading.Unreadable as error:
        raise ConfigError(str(path), [f"cannot be read: {error}"]) from None
    if "extends" not in table:
        return table
    base = table.pop("extends")
    if not isinstance(base, str):
        raise ConfigError(str(path), [f"extends: expected the name of a file, got {base!r}"])
    under = path.parent / base
    files = (path, *beyond)
    if any(reading.same(under, file) for file in files):
        raise ConfigError(str(path), [f"extends: {base} extends this file; break the circle"])
    if len(files) > LONGEST:
        message = f"extends: expected at most {LONGEST} files behind each other; there are more"
        raise ConfigError(str(beyond[-1]), [message])
    return _merged(_table_of(under, files), table)


def _build_file(table: Mapping[str, Any], errors: list[str]) -> Config | Benchmark | None:
    if table.get("task") == "benchmark":
        return _build_benchmark(table, errors)
    return _build_config(table, errors)


def _build_benchmark(table: Mapping[str, Any], errors: list[str]) -> Benchmark | None:
    table = dict(table)
    entries = _tables(table.pop("layer", []), "layer", errors)
    _refuse_plurals(table, {"layers": "layer"}, errors)
    config = build(Benchmark, table, "", errors)
    _check_name(config, errors)
    layers: list[Layer] = []
    for index, entry in enumerate(entries):
        name = entry.get("name")
        path = f"layer.{name}" if isinstance(name, str) else f"layer[{index}]"
        layer = build(Layer, entry, path, errors)
        if layer is not None:
            errors.extend(f"{path}.{error}" for error in layer.errors())
            layers.append(layer)
    if config is None or len(layers) < len(entries):
        return None
    resolved = replace(config, layers=tuple(layers))
    errors.extend(resolved.errors())
    return resolved


def _build_config(table: Mapping[str, Any], errors: list[str]) -> Config | None:
    table = dict(table)
    variants = _tables(table.pop("variant", []), "variant", errors)
    claims = _tables(table.pop("expect", []), "expect", errors)
    base = table.pop("options", {})
    _refuse_plurals(table, {"variants": "variant", "claims": "expect"}, errors)
    given = set(table)
    source = table.pop("data", None)
    config = build(Config, table, "", errors)
    task_name = table.get("task")
    task = _find_task(task_name, errors)
    if task is None and plugins.is_name(task_name):
        return None  # what it takes is not known
    refused, required = ({}, ()) if task is None else (task.refused, task.required)
    data_set = {} if "data" in refused else _build_data(source, errors)
    errors.extend(
        f"{key}: task {task_name!r} {why}; leave it out"
        for key, why in refused.items()
        if key in given
    )
    errors.extend(f"{key}: missing" for key in required if key not in given)
    _check_name(config, errors)
    steps, chunk = table.get("steps"), table.get("chunk_steps")
    if type(steps) is int and type(chunk) is int and chunk > 0 and steps % chunk:
        errors.append(f"chunk_steps: must divide steps; got {chunk} and steps={steps}")
    seeds = table.get("seeds", [0])
    whole = [seed for seed in seeds if type(seed) is int] if isinstance(seeds, list) else [0]
    if not whole or len(set(whole)) < len(whole):
        errors.append(f"seeds: expected at least one seed and none twice, got {seeds}")
    if not isinstance(base, dict):
        errors.append(f"options: expected a table, got {base!r}")
        base = {}

    sound = task is not None and build(task.options, base, "options", errors) is not None
    resolved: list[Variant] = []
    names: list[str] = []
    for index, entry in enumerate(variants):
        name = entry.pop("name", None)
        path = f"variant[{index}]" if not isinstance(name, str) else f"variant.{name}"
        if not isinstance(name, str) or not name.isidentifier() or name == "real" or name in names:
            errors.append(
                f"{path}.name: expected a unique identifier other than 'real', got {name!r}"
            )
        if len(str(name).encode()) > NAME:
            errors.append(f"{path}.name: expected at most {NAME} bytes, as it names files")
        names.append(str(name))
        if task is not None:
            for key in sorted(task.shared & entry.keys()):
                errors.append(
                    f"{path}.{key}: must be the same for all variants; set it in [options]"
                )
            if build(task.options, entry, path, errors) is not None and sound:
                options = task.options(**_values(task.options, base | entry))
                own: list[str] = getattr(options, "errors", list)()
                errors.extend(f"{path}.{error}" for error in own)
                resolved.append(Variant(str(name), options))
    if not variants:
        errors.append("variant: expected at least one [[variant]] table")

    stated: list[Claim] = []
    for index, entry in enumerate(claims):
        claim = build(Claim, entry, f"expect[{index}]", errors)
        if claim is None:
            continue
        for metric in claim.metrics:
            if task is not None and metric not in task.metrics:
                hint = _hint(metric, task.metrics, choices=True)
                errors.append(f"expect[{index}].metric: unknown metric {metric!r}{hint}")
        errors.extend(
            f"expect[{index}].relation: {error}"
            for error in claim.errors(
                names, real="data" not in refused, trains="steps" not in refused
            )
        )
        if task is not None:
            errors.extend(
                f"expect[{index}].metric: variant {variant.name!r} has no {metric!r}"
                for variant in resolved
                for metric in claim.metrics
                if variant.name in claim.names(names) and metric in task.lacking(variant.options)
            )
        stated.append(claim)
    return config and replace(config, data=data_set, variants=tuple(resolved), claims=tuple(stated))


def _find_task(name: Any, errors: list[str]) -> Kind | None:
    """Returns a task, None after appending an error, or where `name` is no text."""
    if not isinstance(name, str):
        return None
    try:
        if name in TASKS or plugins.is_name(name):
            return tasks.find(name)
        known = (*TASKS, "benchmark", "module:function")
        errors.append(f"task: unknown name {name!r}{_hint(name, known, choices=True)}")
    except ValueError as error:
        errors.append(f"task: {error}")
    return None


def _build_data(value: Any, errors: list[str]) -> dict[str, Any]:
    """Returns the source of a data set and the keywords of its function, defaults filled in."""
    table = _table("data", value)
    name = table.get("source") if isinstance(table, dict) else None
    path = "data" if isinstance(value, str) else "data.source"
    if value is None:
        errors.append("data: missing")
    elif not isinstance(table, dict):
        errors.append(f"data: expected a name or a table, got {value!r}")
    elif not isinstance(name, str):
        errors.append("data.source: " + (f"expected a name, got {name!r}" if name else "missing"))
    elif name not in data.SOURCES and not plugins.is_name(name):
        hint = _hint(name, [*data.SOURCES, "module:function"], choices=True)
        errors.append(f"{path}: unknown name {name!r}{hint}")
    else:
        keywords = {key: entry for key, entry in table.items() if key not in data.OURS}
        in_memory = _convert(bool, table.get("in_memory", True), "data.in_memory", errors)
        ours = {"source": name} | ({} if in_memory else {"in_memory": False})
        try:
            function = data.find(name)
            if "in_memory" in inspect.signature(function).parameters:
                errors.append(
                    f"data.in_memory: is a key of every source; name the keyword of {name} otherwise"
                )
            return ours | _keywords(function, keywords, "data", errors)
        except ValueError as error:
            errors.append(f"{path}: {error}")
    return {}


def _keywords(
    function: Callable[..., Any], table: Mapping[str, Any], path: str, errors: list[str]
) -> dict[str, Any]:
    """Returns the keywords of a call, defaults filled in; types are checked where TOML can write them."""
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(function).parameters.values()
    known = {p.name: p for p in parameters if p.kind in by_name and p.name not in data.OURS}
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError):  # in annotations of the user
        hints = {}
    result = {name: p.default for name, p in known.items() if _plain(p.default)}
    for key, value in table.items():
        if key not in known and all(p.kind is not p.VAR_KEYWORD for p in parameters):
            errors.append(f"{path}.{key}: unknown key{_hint(key, known, choices=True)}")
        elif not _plain(value):
            errors.append(f"{path}.{key}: expected a number, text or list, got {value!r}")
        else:
            hint = _of_toml(hints.get(key))
            result[key] = value if hint is None else _convert(hint, value, f"{path}.{key}", errors)
            _check_range({}, value, f"{path}.{key}", errors)
    for name, p in known.items():
        if p.default is p.empty and name not in table:
            errors.append(f"{path}.{name}: missing")
    return result


def _plain(value: Any) -> bool:
    """Whether a value can be written to a resolved config."""
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and _plain(list(value.values()))
    return value is None or isinstance(value, bool | int | float | str)


def _of_toml(hint: Any) -> Any:
    """Returns the type of a keyword if TOML can write it, else None."""
    if typing.get_origin(hint) in (Union, UnionType):
        kinds = [kind for kind in typing.get_args(hint) if kind is not NoneType]
        hint = kinds[0] if len(kinds) == 1 else None
    known = hint in (bool, int, float, str) or typing.get_origin(hint) is Literal
    return hint if known else None


def _check_name(config: Resolved | None, errors: list[str]) -> None:
    if config and len(config.name.encode()) > NAME:
        errors.append(f"name: expected at most {NAME} bytes, as it names a folder")
    elif config and not re.fullmatch(r"[\w.-]*\w", config.name):
        errors.append(
            f"name: expected letters, digits and '_-.', as it names a folder; got {config.name!r}"
        )


def _refuse_plurals(table: dict[str, Any], names: Mapping[str, str], errors: list[str]) -> None:
    """Drops fields that are built from `[[tables]]`, not set by hand, with an error each."""
    for name, meant in names.items():
        if name in table:
            errors.append(f"{name}: unknown key; did you mean '[[{meant}]]'?")
            del table[name]


def build(cls: type, table: Mapping[str, Any], path: str, errors: list[str]) -> Any:
    """Returns `cls` filled from a table, or None after appending every error to `errors`."""
    before = len(errors)
    dotted = f"{path}." if path else ""
    _check_keys(cls, table, path, errors)
    hints = typing.get_type_hints(cls)
    for f in fields(cls):
        if f.name in table:
            value = _convert(hints[f.name], table[f.name], dotted + f.name, errors)
            _check_range(f.metadata, value, dotted + f.name, errors)
        elif f.default is MISSING and f.default_factory is MISSING:
            errors.append(f"{dotted}{f.name}: missing")
    return cls(**_values(cls, table)) if len(errors) == before else None


def _values(cls: type, table: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields that a valid table sets, converted."""
    hints = typing.get_type_hints(cls)
    return {name: _convert(hints[name], value, name, []) for name, value in table.items()}


def _check_keys(cls: type, table: Mapping[str, Any], path: str, errors: list[str]) -> None:
    known = [f.name for f in fields(cls) if "table" not in f.metadata]
    extra = {
        Config: ["data", "options", "variant", "expect", "sweep", "quick"],
        Benchmark: ["layer", "quick"],
    }.get(cls, [])
    for key in table:
        if key not in known:
            dotted = f"{path}.{key}" if path else key
            errors.append(f"{dotted}: unknown key{_hint(key, [*known, *extra])}")


def _convert(kind: Any, value: Any, path: str, errors: list[str]) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value in arguments:
            return value
        errors.append(f"{path}: unknown value {value!r}{_hint(value, arguments, choices=True)}")
    elif origin is tuple:
        if isinstance(value, list | tuple):
            return tuple(
                _convert(arguments[0], entry, f"{path}[{i}]", errors)
                for i, entry in enumerate(value)
            )
        errors.append(f"{path}: expected a list, got {value!r}")
    elif plugins.Name in arguments:  # one of some names, or that of a user's function
        known = typing.get_args(arguments[0])
        if value in known or plugins.is_name(value):
            return value
        hint = _hint(value, [*known, "module:function"], choices=True)
        errors.append(f"{path}: unknown value {value!r}{hint}")
    elif origin is UnionType:  # one value, or a list with one per axis
        one, many = arguments
        return _convert(many if isinstance(value, list | tuple) else one, value, path, errors)
    elif kind is float and type(value) in (int, float) and abs(value) < 1e300:
        return float(value)
    elif type(value) is kind and kind is not float:
        return value
    else:
        errors.append(f"{path}: expected {kind.__name__}, got {value!r}")
    return None


def _check_range(metadata: Mapping[Any, Any], value: Any, path: str, errors: list[str]) -> None:
    if isinstance(value, tuple):
        for i, entry in enumerate(value):
            _check_range(metadata, entry, f"{path}[{i}]", errors)
    if not isinstance(value, int | float):
        return
    bound = LARGEST if isinstance(value, int) else math.inf
    least, most = metadata.get("minimum", -bound), metadata.get("maximum", bound)
    if value < least:
        errors.append(f"{path}: must be at least {least}, got {value}")
    if value > most:
        errors.append(f"{path}: must be at most {most}, got {value}")
    if "below" in metadata and value >= metadata["below"]:
        errors.append(f"{path}: must be below {metadata['below']}, got {value}")


def _hint(value: Any, known: Sequence[Any] | Mapping[str, Any], *, choices: bool = False) -> str:
    names = [str(k) for k in known]
    near = difflib.get_close_matches(str(value), names, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; expected one of {', '.join(map(repr, names))}" if choices else ""


def _tables(value: Any, name: str, errors: list[str]) -> list[dict[str, Any]]:
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        return [dict(entry) for entry in value]
    errors.append(f"{name}: expected [[{name}]] tables, got {value!r}")
    return []


def _merged(table: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(table)
    for key, value in overrides.items():
        old = result.get(key)
        if isinstance(value, dict):
            old = _table(key, old)
        if isinstance(old, dict) and isinstance(value, dict):
            value = _merged(old, value)
        result[key] = value
    return result


def _table(key: str, value: Any) -> Any:
    """Returns the long form of `data = "NAME"`; other values as they are."""
    return {"source": value} if key == "data" and isinstance(value, str) else value


def _with(
    table: dict[str, Any], setting: str, errors: list[str], option: str = "--set"
) -> dict[str, Any]:
    """Returns the table with one `key.path=VALUE` applied."""
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        errors.append(f"{option} {setting}: expected key.path=VALUE")
        return table
    value = _value(text, f"{option} {setting}", errors)
    return table if value is None else _put(table, key.strip(), value, errors)


def _with_axis(sweep: Any, axis: str, errors: list[str]) -> Any:
    """Returns the table of a sweep with one more axis, `key.path=VALUE,VALUE,..`."""
    key, equals, text = axis.partition("=")
    if not equals or not key.strip() or not isinstance(sweep, dict):
        errors.append(f"--sweep {axis}: expected key.path=VALUE,VALUE,..")
        return sweep
    wrong: list[str] = []
    values = _value(f"[{text}]", f"--sweep {axis}", wrong)
    if not wrong and not isinstance(values, list):  # bare words
        values = [_value(word, f"--sweep {axis}", wrong) for word in text.split(",")]
    errors += dict.fromkeys(wrong)
    return sweep if wrong else _merged(sweep, {"axes": {key.strip(): values}})


def _value(text: str, setting: str, errors: list[str]) -> Any:
    """Reads a value of the command line: TOML, a bare word is a string."""
    try:
        value = reading.parse_toml(f"value = {text}")
    except reading.NotToml:
        return text.strip()
    except reading.Unreadable as error:
        errors.append(f"{setting}: {error}")
        return None
    return value["value"] if len(value) == 1 else text.strip()


def _put(table: dict[str, Any], key: str, value: Any, errors: list[str]) -> dict[str, Any]:
    """Returns the table with the value at a dotted key."""
    path = key.split(".")
    if len(path) > reading.DEEPEST:
        errors.append(f"{key}: expected at most {reading.DEEPEST} names; got {len(path)}")
        return table
    below: Any = table
    for i, name in enumerate(path[:-1]):
        below = _table(name, below.get(name, {}))
        if not isinstance(below, dict):
            errors.append(f"{key}: {'.'.join(path[: i + 1])} is not a table")
            return table
    for name in reversed(path[1:]):
        value = {name: value}
    return _merged(table, {path[0]: value})


def describe(config: Resolved) -> dict[str, Any]:
    """Returns the resolved config as plain JSON values."""
    return json.loads(json.dumps(asdict(config)))
