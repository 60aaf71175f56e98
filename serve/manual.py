"""The page at ``/docs``: the OpenAPI document as HTML that needs no script and no other server."""

from __future__ import annotations

from html import escape
from typing import Any

__all__ = ["METHODS", "draw_manual"]

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
section { border-top: 1px solid #8884; padding: .5rem 0 1rem; }
h2 { margin-bottom: 0; }
h3 { margin: 1rem 0 .25rem; font-family: ui-monospace, monospace; font-size: 1rem; }
.method { display: inline-block; min-width: 4.5rem; font-weight: 700; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .2rem .75rem .2rem 0; }
code { font-family: ui-monospace, monospace; overflow-wrap: anywhere; }
"""
METHODS = ("get", "post", "put", "delete")


def draw_manual(document: dict[str, Any]) -> str:
    """HTML of an OpenAPI document: each operation with its parameters, bodies and replies, and the records."""
    info = document["info"]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{escape(info['title'])} {escape(info['version'])}</title><style>{_STYLE}</style>",
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])}",
        " The same for programs: <a href=/openapi.json>openapi.json</a>. With API keys each request carries",
        " <code>Authorization: Bearer KEY</code>.</p>",
        "<p>A picture, scored by the champion of <code>bottle</code>:</p>",
        "<pre>curl --data-binary @picture.png -H 'Content-Type: image/png' ADDRESS/v1/models/bottle/score</pre>",
        "<h2>Requests</h2>",
    ]
    for path, operations in document["paths"].items():
        for method in METHODS:
            if method in operations:
                parts.append(_operation(path, method, operations[method]))
    parts.append("<h2>Records</h2>")
    for name, schema in sorted(document.get("components", {}).get("schemas", {}).items()):
        parts.append(_record(name, schema))
    return "".join(parts)


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    rows = [
        _row(f"{one['in']} <code>{escape(one['name'])}</code>", escape(_text(one, one.get("schema", {}))))
        for one in operation.get("parameters", [])
    ]
    body = operation.get("requestBody")
    if body is not None:
        kinds = ", ".join(
            f"<code>{escape(kind)}</code> {_type(media.get('schema', {}))}" for kind, media in body["content"].items()
        )
        rows.append(_row("body", f"{escape(body.get('description', ''))} {kinds}"))
    for status, reply in sorted(operation["responses"].items(), key=lambda one: str(one[0])):
        types = " ".join(_type(media.get("schema", {})) for media in reply.get("content", {}).values())
        rows.append(_row(f"reply {escape(str(status))}", f"{escape(reply.get('description', ''))} {types}"))
    text = escape(operation.get("description", operation.get("summary", "")))
    head = f"<h3><span class=method>{method.upper()}</span> {escape(path)}</h3><p>{text}</p>"
    return f"<section>{head}<table>{''.join(rows)}</table></section>"


def _record(name: str, schema: dict[str, Any]) -> str:
    rows = [
        _row(f"<code>{escape(field)}</code>", f"{_type(one)} {escape(_text(one, one))}")
        for field, one in schema.get("properties", {}).items()
    ]
    text = escape(schema.get("description", "")).replace("\n", "<br>")
    return f"<section id={escape(name)}><h3>{escape(name)}</h3><p>{text}</p><table>{''.join(rows)}</table></section>"


def _row(head: str, text: str) -> str:
    return f"<tr><th>{head}</th><td>{text}</td></tr>"


def _text(one: dict[str, Any], schema: dict[str, Any]) -> str:
    words = [one.get("description", "")]
    if "default" in schema and schema["default"] not in (None, ""):
        words.append(f"Default {schema['default']}.")
    return " ".join(word for word in words if word)


def _type(schema: dict[str, Any]) -> str:
    """A schema in a few words, with a link to the record that it names."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f"<a href='#{name}'>{name}</a>"
    if "enum" in schema:
        return escape(", ".join(map(str, schema["enum"])))
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return escape(str(schema.get("type", "")))
