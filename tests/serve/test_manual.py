from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from autoad.serve.http import describe_api
from autoad.serve.manual import draw_manual

DOCUMENT = describe_api()


class Page(HTMLParser):
    """What a browser would find."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.text = re.sub(r"\s+", " ", "".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(draw_manual(DOCUMENT))


def test_it_needs_no_script_and_no_other_server(page: Page) -> None:
    assert page.tags.count("section") > 10
    assert not {"script", "link", "iframe", "img", "object", "embed", "form"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    addresses = [value for name, value in page.attributes if name in ("href", "src", "action", "srcset")]
    assert addresses
    assert all(address.startswith(("#", "/openapi.json")) for address in addresses)
    assert "url(" not in draw_manual(DOCUMENT)
    assert "@import" not in draw_manual(DOCUMENT)


def test_every_operation_with_its_parameters_and_replies_is_there(page: Page) -> None:
    operations = [
        (path, method, operation)
        for path, methods in DOCUMENT["paths"].items()
        for method, operation in methods.items()
    ]
    assert len(operations) >= 11
    for path, method, operation in operations:
        assert f"{method.upper()} {path}" in page.text, (method, path)
        for parameter in operation.get("parameters", []):
            assert f"{parameter['in']} {parameter['name']}" in page.text
        for status in operation["responses"]:
            assert f"reply {status}" in page.text


def test_every_record_and_field_is_there_and_every_link_leads_somewhere(page: Page) -> None:
    places = {value for name, value in page.attributes if name == "id"}
    for name, schema in DOCUMENT["components"]["schemas"].items():
        assert name in places
        for field in schema.get("properties", {}):
            assert field in page.text
    links = [value for name, value in page.attributes if name == "href" and value.startswith("#")]
    assert len(links) > 20
    assert {link[1:] for link in links} <= places


def test_what_stands_in_the_document_is_text() -> None:
    document = {
        "info": {"title": "<b>", "version": "1&2", "description": "<script>alert(1)</script>"},
        "paths": {
            "/<i>": {
                "get": {
                    "description": "<u>",
                    "parameters": [{"in": "query", "name": "<em>", "description": "<s>", "schema": {"default": "<q>"}}],
                    "requestBody": {"description": "<a>", "content": {"<p2>": {"schema": {"type": "<t>"}}}},
                    "responses": {"200": {"description": "<big>", "content": {"x": {"schema": {"enum": ["<v>"]}}}}},
                }
            }
        },
        "components": {"schemas": {"<R>": {"description": "<d>", "properties": {"<f>": {"type": "array"}}}}},
    }
    page = Page(draw_manual(document))
    assert not set(page.tags) & {"b", "script", "i", "u", "em", "s", "q", "a2", "p2", "t", "big", "v", "r", "d", "f"}
    for text in ("<b>", "1&2", "<script>alert(1)</script>", "/<i>", "<em>", "<s>", "<q>", "<t>", "<big>", "<v>", "<f>"):
        assert text in page.text
