"""Writes the reference pages from the code: ``python docs/reference.py`` (a test compares them).

cli.md comes from the commands, http.md from the OpenAPI document, sdk.md from the docstrings of ``autoad.client``.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
_MADE = "<!-- Written by docs/reference.py: change the code, then run it. -->"
_SECTIONS = ("Args", "Attributes", "Raises", "Returns", "Yields")
_METHODS = ("get", "post", "put", "delete")


def pages() -> dict[str, str]:
    """Each page's text by its file name."""
    return {"cli.md": cli_page(), "http.md": http_page(), "sdk.md": sdk_page()}


def cli_page() -> str:
    """Every command with its arguments and options."""
    import typer

    from autoad.cli import app

    parts = [
        "# Command line",
        _MADE,
        "Results go to stdout, progress to stderr. `--json` prints records for programs. Exit codes: 0 ok, 1 failure, "
        "2 wrong request, 3 no trial succeeded, 4 no server answers, 130 interrupted.",
    ]
    for name, command in sorted(_commands(typer.main.get_command(app), "autoad")):
        arguments = " ".join(
            (one.metavar or one.name.upper()) + ("..." if one.nargs == -1 else "")
            for one in command.params
            if one.param_type_name == "argument"
        )
        parts += [f"## {name}", f"    {name} {arguments}".rstrip(), _sentence(command.help)]
        rows = [_parameter(one) for one in command.params if one.name != "help"]
        if rows:
            parts.append("| | |\n|---|---|\n" + "\n".join(rows))
    return "\n\n".join(parts) + "\n"


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    below = getattr(command, "commands", {})
    if not below or getattr(command, "invoke_without_command", False):
        yield name, command
    for child, one in below.items():
        yield from _commands(one, f"{name} {child}")


def _parameter(one: Any) -> str:
    if one.param_type_name == "argument":
        names, text = f"`{one.metavar or one.name.upper()}`", one.help or ""
    else:
        names = ", ".join(f"`{option}`" for option in (*one.opts, *one.secondary_opts))
        text = one.help or ""
    known = one.default if isinstance(one.default, str | int | float) and not isinstance(one.default, bool) else None
    if known not in (None, "") and "Default" not in text:
        text = f"{text} Default {known}."
    return f"| {names} | {_cell(text)} |"


def http_page() -> str:
    """Every operation and record of the server."""
    from autoad.serve.http import describe_api

    document = describe_api()
    parts = [
        "# HTTP interface",
        _MADE,
        "The same for programs is [openapi.json](openapi.json), and a server has it at `/openapi.json` and, for "
        "people, at `/docs`. With API keys each request carries `Authorization: Bearer KEY`. Errors have one shape, "
        "[ErrorReply](#errorreply).",
        "## Requests",
    ]
    for path, operations in document["paths"].items():
        parts += [_operation(path, method, operations[method]) for method in _METHODS if method in operations]
    parts.append("## Records")
    for name, schema in sorted(document["components"]["schemas"].items()):
        parts.append(f"### {name}\n\n{_docstring(schema.get('description', ''))}".rstrip())
        rows = [f"| `{field}` | {_type(one)} | {_facts(one)} |" for field, one in schema.get("properties", {}).items()]
        if rows:
            parts.append("| field | type | |\n|---|---|---|\n" + "\n".join(rows))
    return "\n\n".join(parts) + "\n"


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    parts = [f"### {method.upper()} `{path}`", _docstring(operation.get("description", operation.get("summary", "")))]
    rows = [
        f"| {one['in']} `{one['name']}` | {_type(one.get('schema', {}))} | "
        f"{_cell(one.get('description', ''))} {_facts(one.get('schema', {}))} |"
        for one in operation.get("parameters", [])
    ]
    body = operation.get("requestBody")
    if body is not None:
        kinds = ", ".join(f"`{kind}`: {_type(media.get('schema', {}))}" for kind, media in body["content"].items())
        rows.append(f"| body | {kinds} | {_cell(body.get('description', ''))} |")
    for status, reply in sorted(operation["responses"].items(), key=lambda one: str(one[0])):
        kinds = ", ".join(_type(media.get("schema", {})) for media in reply.get("content", {}).values())
        rows.append(f"| reply {status} | {kinds} | {_cell(reply.get('description', ''))} |")
    parts.append("| | | |\n|---|---|---|\n" + "\n".join(rows))
    return "\n\n".join(parts)


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in schema:
        return ", ".join(f"`{one}`" for one in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("format") or schema.get("type") or "")


def _facts(schema: dict[str, Any]) -> str:
    facts = []
    if schema.get("default") not in (None, "", [], {}):
        facts.append(f"default {schema['default']}")
    for key, words in (("minimum", "at least"), ("maximum", "at most"), ("exclusiveMinimum", "above")):
        if key in schema:
            facts.append(f"{words} {schema[key]:g}")
    return _cell(", ".join(facts))


def sdk_page() -> str:
    """Every public class of the SDK, its methods, and the exceptions."""
    from autoad import client, errors

    parts = [
        "# Python SDK",
        _MADE,
        _docstring(client.__doc__ or ""),
        "`autoad.Client` and `autoad.AsyncClient` import neither PyTorch nor Ray. Records such as `DatasetEntry` are "
        "those of the [HTTP interface](http.md#records).",
    ]
    for name in sorted(client.__all__, key=lambda name: (name.startswith("Async"), name)):
        found = getattr(client, name)
        if inspect.isclass(found):
            parts += [f"## {name}", *_class(found)]
    parts += ["## Exceptions", _docstring(errors.__doc__ or "")]
    return "\n\n".join(part for part in parts if part) + "\n"


def _class(found: type) -> Iterator[str]:
    yield _docstring(found.__doc__ or "")
    for name, member in vars(found).items():
        text = inspect.getdoc(member) or ""
        if name.startswith("_") or not (callable(member) or isinstance(member, property)):
            continue
        if text.startswith("As :meth:"):  # what the class without asyncio has
            continue
        if isinstance(member, property):
            yield f"### {found.__name__}.{name}"
        else:
            prefix = "async " if inspect.iscoroutinefunction(member) else ""
            yield f"### {found.__name__}.{name}\n\n```python\n{prefix}{_signature(name, member)}\n```"
        yield _docstring(text)


class _Bare(str):
    """An annotation that is shown without the quotes of its string."""

    def __repr__(self) -> str:
        return str(self)


def _signature(name: str, function: Any) -> str:
    signature = inspect.signature(function)
    shown = [
        one.replace(annotation=_Bare(one.annotation)) for one in signature.parameters.values() if one.name != "self"
    ]
    returned = _Bare(signature.return_annotation)
    text = f"{name}{signature.replace(parameters=shown, return_annotation=returned)}"
    if len(text) <= 100:
        return text
    lines, keyword = [], False
    for one in shown:
        if one.kind is one.KEYWORD_ONLY and not keyword:
            lines.append("*")
            keyword = True
        lines.append(str(one))
    return f"{name}(\n" + "".join(f"    {line},\n" for line in lines) + f") -> {returned}"


def _docstring(text: str) -> str:
    """A docstring as Markdown: its sections become lists."""
    lines, inside = [], ""
    for line in inspect.cleandoc(text).splitlines():
        heading = line.strip().rstrip(":")
        if heading in _SECTIONS and line.strip().endswith(":"):
            inside = heading
            lines += ["", f"**{heading}**", ""]
        elif inside and (entry := re.match(r"    (\S[^:]*): (.*)", line)) and inside not in ("Returns", "Yields"):
            lines.append(f"- `{entry[1].strip('*')}`: {entry[2]}")
        elif inside and line.strip():
            lines.append(f"  {line.strip()}" if inside not in ("Returns", "Yields") else line.strip())
        else:
            inside = inside if line.startswith(" ") or not line else ""
            lines.append(line)
    joined = "\n".join(lines)
    joined = re.sub(r":(?:class|meth|mod|func):`~?([^`]+)`", lambda one: f"`{one[1].rpartition('.')[2]}`", joined)
    joined = re.sub(r"(?m)^::\n\n", "", joined)  # a block by itself needs no word before it
    return re.sub(r"\n{3,}", "\n\n", joined.replace("``", "`")).strip()


def _sentence(text: str | None) -> str:
    return " ".join((text or "").split())


def _cell(text: str) -> str:
    return _sentence(text).replace("|", "\\|")


if __name__ == "__main__":
    os.environ.setdefault("COLUMNS", "120")
    for file, page in pages().items():
        (FOLDER / file).write_text(page)
