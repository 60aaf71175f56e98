from __future__ import annotations

import asyncio
import base64
import json
import tempfile
import tracemalloc
from collections.abc import Sequence
from typing import Any

import pytest
from starlette.requests import Request

from autoad.errors import UsageError
from autoad.serve.faults import RequestTooLargeError, UnsupportedError
from autoad.serve.options import ServeOptions
from autoad.serve.pictures import read_pictures

OPTIONS = ServeOptions(max_pictures=3, max_request_bytes=100_000)


def read(
    body: bytes | Sequence[bytes],
    kind: str | None = "image/png",
    *,
    options: ServeOptions = OPTIONS,
    disconnect: bool = False,
    **headers: str,
) -> list[bytes]:
    """What is read of a request whose body comes in these chunks."""
    chunks = [body] if isinstance(body, bytes) else list(body)
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": chunk, "more_body": disconnect or index + 1 < len(chunks)}
        for index, chunk in enumerate(chunks)
    ]
    if disconnect:
        messages.append({"type": "http.disconnect"})
    given = ({} if kind is None else {"content-type": kind}) | {
        name.replace("_", "-").lower(): value for name, value in headers.items()
    }
    raw = [(name.encode(), value.encode("latin-1")) for name, value in given.items()]

    async def receive() -> Any:
        return messages.pop(0)

    request = Request({"type": "http", "method": "POST", "path": "/", "headers": raw, "query_string": b""}, receive)
    return asyncio.run(read_pictures(request, options))


def form(*parts: bytes, end: bytes = b"--edge--\r\n") -> bytes:
    head = b'--edge\r\nContent-Disposition: form-data; name="pictures"; filename="a.png"\r\n\r\n'
    return b"".join(head + part + b"\r\n" for part in parts) + end


FORM = "multipart/form-data; boundary=edge"


@pytest.mark.parametrize(
    "kind", ["image/png", "IMAGE/PNG; charset=x", "image/anything", "application/octet-stream", None]
)
def test_a_raw_body_is_one_picture(kind: str | None) -> None:
    assert read([b"ab", b"", b"cd"], kind) == [b"abcd"]


def test_a_form_may_hold_several() -> None:
    binary = bytes(range(256)) + b"\r\n--edg"
    assert read(form(b"one", binary), FORM) == [b"one", binary]
    assert read(form(b"one").replace(b"pictures", b"whatever"), FORM) == [b"one"]


def test_json_holds_base64() -> None:
    pictures = [bytes(range(256)), b"x"]
    body = json.dumps({"pictures": [base64.b64encode(one).decode() for one in pictures], "more": 1}).encode()
    assert read(body, "application/json") == pictures
    assert read(body, "application/json; charset=utf-8") == pictures


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "", "multipart/mixed", "video/mp4"]
)
def test_other_kinds_are_not_read(kind: str) -> None:
    with pytest.raises(UnsupportedError, match="must come as image/"):
        read(b"abcd", kind)


@pytest.mark.parametrize(
    ("body", "kind", "reason"),
    [
        (b"", "image/png", "at least one picture"),
        (form(b""), FORM, "none of 0 bytes"),
        (form(b"one", b""), FORM, "none of 0 bytes"),
        (form(), FORM, "at least one picture"),
        (b'--edge\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n--edge--\r\n', FORM, "at least one picture"),
        (form(b"one"), "multipart/form-data", "boundary"),
        (form(b"one"), "multipart/form-data; boundary=other", "cannot be read"),
        (form(b"one", b"two", end=b""), FORM, "ends before its last boundary"),
        (form(b"one", b"two")[:-25], FORM, "ends before its last boundary"),
        (form(b"one").replace(b'name="pictures"; ', b""), FORM, "cannot be read"),
        (b"nonsense", FORM, "cannot be read"),
        (b"", FORM, "cannot be read"),
        *[
            (body, "application/json", "JSON must be")
            for body in (
                b"",
                b"{",
                b"[]",
                b"null",
                b"7",
                b'"pictures"',
                b"{}",
                b'{"pictures": "AAAA"}',
                b'{"pictures": [7]}',
                b'{"pictures": [null]}',
                b'{"pictures": ["A"]}',
                b'{"pictures": ["AAA*"]}',
                b'{"pictures": ["\xff"]}',
                b'{"pictures": ["\\ud800AAA"]}',
                b'{"pictures": {"0": "AAAA"}}',
                b"[" * 50_000,
                b'{"pictures": ' + b"9" * 50_000 + b"}",
            )
        ],
        (b'{"pictures": []}', "application/json", "at least one picture"),
        (b'{"pictures": [""]}', "application/json", "none of 0 bytes"),
    ],
)
def test_a_body_that_is_not_what_it_says_is_refused(body: bytes, kind: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        read(body, kind)


@pytest.mark.parametrize("charset", ["idna", "zlib", "undefined", "no-such", "utf-16", "rot13", "\x80"])
def test_a_forms_charset_cannot_break_it(charset: str) -> None:
    outcome: object
    try:
        outcome = read(form(b"one"), f"{FORM}; charset={charset}")
    except UsageError as error:
        outcome = str(error)
    assert outcome in ([b"one"], "the form cannot be read: it is damaged")


def test_too_many_pictures_are_refused() -> None:
    assert len(read(form(*[b"x"] * 3), FORM)) == 3
    with pytest.raises(RequestTooLargeError, match="4 pictures but at most 3"):
        read(form(*[b"x"] * 4), FORM)
    with pytest.raises(RequestTooLargeError, match="more than 3 pictures"):
        read(form(*[b"x"] * 50), FORM)
    for count, reason in ((4, "4 pictures but at most 3"), (2000, "more than 3 pictures")):
        with pytest.raises(RequestTooLargeError, match=reason):
            read(json.dumps({"pictures": ["AAAA"] * count}).encode(), "application/json")


@pytest.mark.parametrize("length", ["100001", "9" * 18, "9" * 5000])
def test_a_length_that_is_too_large_is_refused_before_anything_is_read(length: str) -> None:
    with pytest.raises(RequestTooLargeError, match="bytes but at most 100000 are read"):
        read([], content_length=length)  # there is no message to be read


def test_a_body_without_a_length_is_counted() -> None:
    chunk = bytes(10_000)
    assert read([chunk] * 10) == [bytes(100_000)]
    messages = [chunk] * 10 + [b"x", b"never read"]
    with pytest.raises(RequestTooLargeError, match="more than 100000 bytes"):
        read(messages)
    with pytest.raises(RequestTooLargeError, match="more than 100000 bytes"):
        read(messages, content_length="5")  # a lie


@pytest.mark.parametrize("length", ["", "-1", "\xb2", "many"])
def test_a_length_that_is_no_number_is_not_believed(length: str) -> None:
    assert read(b"abcd", content_length=length) == [b"abcd"]


def test_a_client_that_goes_away_is_no_failure_of_the_server() -> None:
    with pytest.raises(UsageError, match="ended before its body did"):
        read([b"ab"], disconnect=True)


def test_nothing_touches_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    rolled: list[object] = []
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", lambda self: rolled.append(self))
    large = bytes(3_000_000)
    options = ServeOptions(max_request_bytes=10_000_000)
    assert read(form(large, large), FORM, options=options) == [large, large]
    assert rolled == []


@pytest.mark.parametrize("item", [b"[]", b"{}", b"0", b'""', b"[[]]"])
def test_json_of_millions_of_things_takes_no_more_memory_than_its_bytes(item: bytes) -> None:
    body = b'{"pictures": [' + b",".join([item] * 300_000) + b"]}"
    options = ServeOptions(max_request_bytes=10_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(RequestTooLargeError):
            read(body, "application/json", options=options)
        assert tracemalloc.get_traced_memory()[1] < len(body) + 2**20
    finally:
        tracemalloc.stop()
