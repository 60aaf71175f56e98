"""Reading a search-space file, and saying exactly what is wrong with it."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Collection
from importlib.resources.abc import Traversable
from typing import Any, Literal, NoReturn, Union

import yaml

from autoad.algorithms import ALGORITHMS, Detector, get_algorithm
from autoad.errors import SearchSpaceError, UnknownNameError, UsageError
from autoad.search._parameter import Parameter, ParameterType

__all__ = ["SpaceFile", "read_space_file"]

_FILE_KEYS = ("algorithm", "help", "epochs", "parameters")
_KEYS: dict[ParameterType, tuple[str, ...]] = {
    "float": ("type", "low", "high", "log", "step", "fractions", "default", "help"),
    "int": ("type", "low", "high", "log", "step", "default", "help"),
    "categorical": ("type", "choices", "default", "help"),
    "sweep": ("type", "choices", "default", "help"),
    "fixed": ("value", "help"),
}
_SEARCHED: tuple[ParameterType, ...] = ("float", "int", "categorical", "sweep")


@dataclasses.dataclass(frozen=True)
class SpaceFile:
    """What one file says.

    Attributes:
        path: the file.
        algorithm: whose space it is.
        help: one line, empty where the file has none.
        epochs: ceiling of epochs, None where the file has none.
        parameters: by name.
    """

    path: Traversable
    algorithm: str
    help: str
    epochs: int | None
    parameters: dict[str, Parameter]


class _Loader(yaml.SafeLoader):
    """YAML 1.1 but for numbers such as ``1e-4``, which it would take for text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


@dataclasses.dataclass(frozen=True)
class _Node:
    """A place in the file: what stands there, under which key, in which line (the key's)."""

    path: Traversable
    loader: _Loader
    key: str
    line: int
    node: yaml.Node

    def fail(self, message: str) -> NoReturn:
        where = f"{self.path}:{self.line}"
        raise SearchSpaceError(f"{where}: {self.key}: {message}" if self.key else f"{where}: {message}")

    def value(self) -> Any:
        """A scalar or list; lists become tuples."""
        return _tuples(self.loader.construct_object(self.node, deep=True))

    def entries(self, kind: str, known: Collection[str]) -> dict[str, _Node]:
        """The entries of a mapping, whose keys must be among ``known``."""
        if not isinstance(self.node, yaml.MappingNode):
            self.fail(f"must hold 'key: value' lines but got {self._shown()}")
        entries: dict[str, _Node] = {}
        for key_node, value_node in self.node.value:
            name = str(key_node.value)
            key = f"{self.key}.{name}" if self.key else name
            entry = _Node(self.path, self.loader, key, key_node.start_mark.line + 1, value_node)
            if name in entries:
                entry.fail("stands here twice; keep one")
            if name not in known:
                entry.fail(str(UnknownNameError(kind, name, known)))
            entries[name] = entry
        return entries

    def text(self) -> str:
        """A line of text."""
        value = self.value()
        if not isinstance(value, str):
            self.fail(f"must be text but got {self._shown()}")
        return value

    def number(self, kind: Literal["float", "int"]) -> Any:
        """A finite number, whole if ``kind`` is ``"int"``."""
        value = self.value()
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            self.fail(f"must be a number but got {self._shown()}")
        if kind == "int" and not isinstance(value, int):
            self.fail(f"must be a whole number but got {self._shown()}")
        return float(value) if kind == "float" else value

    def _shown(self) -> str:
        if isinstance(self.node, yaml.ScalarNode):
            return repr(self.node.value) if self.node.value else "nothing"
        return "a list" if isinstance(self.node, yaml.SequenceNode) else "a mapping"


def read_space_file(path: Traversable) -> SpaceFile:
    """Read and check one search-space file.

    Raises:
        SearchSpaceError: it cannot be read or is wrong; names the file, line and key.
    """
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise SearchSpaceError(f"{path}: the search space cannot be read ({reason})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark is not None else f"{path}"
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        raise SearchSpaceError(f"{where}: a search space must be YAML but {problem}") from error
    if node is None:
        raise SearchSpaceError(f"{path}: the search space is empty; it must begin with 'algorithm: NAME'")
    try:
        return _read_file(_Node(path, loader, "", node.start_mark.line + 1, node))
    except yaml.YAMLError as error:  # a tag that only an unsafe loader would construct
        mark = getattr(error, "problem_mark", None)
        raise SearchSpaceError(f"{path}:{mark.line + 1 if mark else 1}: {getattr(error, 'problem', error)}") from error


def _read_file(root: _Node) -> SpaceFile:
    entries = root.entries("key", _FILE_KEYS)
    if "algorithm" not in entries:
        root.fail("algorithm: must be given: 'algorithm: NAME'")
    algorithm = entries["algorithm"].text()
    if algorithm not in ALGORITHMS:
        entries["algorithm"].fail(str(UnknownNameError("algorithm", algorithm, ALGORITHMS)))
    detector = get_algorithm(algorithm)
    fields = {field.name: field for field in dataclasses.fields(detector.Config)}
    hints = typing.get_type_hints(detector.Config)
    epochs = None
    if "epochs" in entries:
        if not detector.iterative:
            entries["epochs"].fail(f"must be left out: {algorithm} does not train in epochs")
        epochs = entries["epochs"].number("int")
        if epochs < 1:
            entries["epochs"].fail(f"must be at least 1 but got {epochs}")
    parameters = {}
    if "parameters" in entries:
        for name, node in entries["parameters"].entries(f"parameter of {algorithm}", fields).items():
            if name == "epochs":
                node.fail("is a ceiling and never searched: write 'epochs: NUMBER' beside 'algorithm'")
            parameters[name] = _read_parameter(node, name, hints[name], fields[name].default, detector)
            _try_config(node, detector.Config, parameters[name])
    return SpaceFile(root.path, algorithm, entries["help"].text() if "help" in entries else "", epochs, parameters)


def _read_parameter(node: _Node, name: str, hint: Any, config_default: Any, detector: type[Detector]) -> Parameter:
    entries = node.entries("key", sorted({key for keys in _KEYS.values() for key in keys}))
    line = entries["help"].text() if "help" in entries else ""
    if "value" in entries:
        kind: ParameterType = "fixed"
    elif "type" not in entries:
        node.fail(f"type: must be one of {', '.join(_SEARCHED)} (or give 'value: VALUE' to fix it)")
    else:
        written = entries["type"].text()
        if written not in _SEARCHED:
            entries["type"].fail(str(UnknownNameError("type of parameter", written, _SEARCHED)))
        kind = written
    for key, entry in entries.items():
        if key not in _KEYS[kind]:
            entry.fail(f"does not go with {'value' if kind == 'fixed' else f'type {kind}'}: {', '.join(_KEYS[kind])}")
    if kind == "fixed":
        return Parameter(name, kind, default=_fitting(entries["value"], hint), help=line)
    if kind == "categorical" or kind == "sweep":
        if kind == "sweep" and name not in detector.post_fit:
            swept = ", ".join(detector.post_fit) or "none"
            other = "float with 'fractions'" if name in detector.reducible else "another type"
            entries["type"].fail(
                f"must not be sweep, for {name} decides what is fitted (of {detector.name}, prediction alone reads: "
                f"{swept}); use {other}"
            )
        parameter = Parameter(name, kind, choices=_read_choices(node, entries, hint, kind), help=line)
    else:
        parameter = _read_range(node, name, kind, entries, hint, line)
        if "fractions" in entries:
            parameter = dataclasses.replace(parameter, fractions=_read_fractions(entries["fractions"], name, detector))
    given = entries.get("default")
    default = config_default if given is None else _fitting(given, hint)
    reason = parameter.refusal(default)
    if reason is not None:
        if given is None:
            node.fail(f"default: {reason} but the algorithm's own is {default!r}; give another")
        given.fail(f"{reason} but got {default!r}")
    return dataclasses.replace(parameter, default=default)


def _read_range(
    node: _Node, name: str, kind: Literal["float", "int"], entries: dict[str, _Node], hint: Any, line: str
) -> Parameter:
    for key in ("low", "high"):
        if key not in entries:
            node.fail(f"{key}: must be given with type {kind}")
        if not _fits(0 if kind == "int" else 0.5, hint):
            entries["type"].fail(f"must suit the parameter, which is {_described(hint)}, but got {kind!r}")
    low, high = entries["low"].number(kind), entries["high"].number(kind)
    if low > high:
        entries["low"].fail(f"must be at most high ({high:g}) but got {low:g}")
    log = entries["log"].value() if "log" in entries else False
    if not isinstance(log, bool):
        entries["log"].fail(f"must be true or false but got {log!r}")
    if log and low <= 0:
        entries["low"].fail(f"must be greater than 0 where log is true but got {low:g}")
    step = entries["step"].number(kind) if "step" in entries else None
    if step is not None:
        if step <= 0:
            entries["step"].fail(f"must be greater than 0 but got {step:g}")
        if log and (kind == "float" or step != 1):
            entries["step"].fail("must be left out where log is true")
        if Parameter(name, kind, low, high, step=step).refusal(high) is not None:
            entries["high"].fail(f"must be low ({low:g}) plus a multiple of step ({step:g}) but got {high:g}")
    return Parameter(name, kind, low, high, log, step, help=line)


def _read_fractions(at: _Node, name: str, detector: type[Detector]) -> tuple[float, ...]:
    if name not in detector.reducible:
        known = ", ".join(detector.reducible) or "none"
        at.fail(f"goes only with what a fitted {detector.name} can reduce ({known})")
    if not isinstance(at.node, yaml.SequenceNode) or not at.node.value:
        at.fail("must be a list of at least one number")
    fractions: list[float] = []
    for item in at.node.value:
        entry = dataclasses.replace(at, node=item, line=item.start_mark.line + 1)
        fraction = entry.number("float")
        if not 0 < fraction < 1:
            entry.fail(f"must be greater than 0 and less than 1 but got {fraction:g}")
        if fraction in fractions:
            entry.fail(f"must differ from each other but {fraction:g} stands here twice")
        fractions.append(fraction)
    return tuple(fractions)


def _read_choices(node: _Node, entries: dict[str, _Node], hint: Any, kind: ParameterType) -> tuple[Any, ...]:
    if "choices" not in entries:
        node.fail(f"choices: must be given with type {kind}")
    at = entries["choices"]
    if not isinstance(at.node, yaml.SequenceNode) or not at.node.value:
        at.fail("must be a list of at least one value")
    choices: list[Any] = []
    for item in at.node.value:
        entry = dataclasses.replace(at, node=item, line=item.start_mark.line + 1)
        choice = _fitting(entry, hint)
        if choice in choices:
            entry.fail(f"must differ from each other but {choice!r} stands here twice")
        choices.append(choice)
    return tuple(choices)


def _fitting(node: _Node, hint: Any) -> Any:
    """A value of the kind that the Config's field holds."""
    value = node.value()
    if not _fits(value, hint):
        node.fail(f"must be {_described(hint)} but got {value!r}")
    return float(value) if hint is float else value


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in arguments
    if origin in (Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if arguments[-1] is not ...:
            return len(value) == len(arguments) and all(map(_fits, value, arguments))
        return len(value) > 0 and all(_fits(item, arguments[0]) for item in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, types.NoneType if hint is None else hint)


def _described(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(map(_described, arguments))
    if origin is tuple:
        return "a list" if arguments[-1] is not ... else f"a list, each item {_described(arguments[0])}"
    names = {float: "a number", int: "a whole number", bool: "true or false", str: "text", types.NoneType: "null"}
    return names.get(hint, str(hint))


def _try_config(node: _Node, config: type[Any], parameter: Parameter) -> None:
    """Refuse values that the algorithm itself would refuse, before a search has begun."""
    reduced = () if parameter.low is None else tuple(parameter.low * fraction for fraction in parameter.fractions)
    for value in (parameter.default, parameter.low, parameter.high, *reduced, *parameter.choices):
        if value is not None or value in parameter.choices:
            try:
                config(**{parameter.name: value})
            except (UsageError, ValueError, TypeError) as error:
                node.fail(f"{value!r} will not do: {error}")


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
