"""What the OpenAPI document promises is what the application does, for requests made from the document itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import strategies
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.python import asgi
from schemathesis.specs.openapi import checks

from autoad.data.catalog import Catalog
from autoad.database import Database, Keys
from autoad.models.registry import Registry
from autoad.schema import SubmitRequest, UploadRequest
from autoad.search.submissions import Submissions
from autoad.serve.auth import Authenticator
from autoad.serve.http import create_app, describe_api
from autoad.serve.options import ServeOptions
from autoad.serve.scorer import Scorer
from tests.serve.submitting import announced, folder, framed, zipped
from tests.serve.yard import Yard

EXAMPLES = 20
OPERATIONS = [
    (method, path, mode)
    for path, methods in describe_api()["paths"].items()
    for method, operation in methods.items()
    for mode in GenerationMode
    if mode is GenerationMode.POSITIVE or {"parameters", "requestBody"} & set(operation)  # or nothing can be wrong
]
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.unsupported_method,
]


@pytest.fixture(scope="module")
def schema(plant: Any, plane: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Of an application that runs as long as this module's tests do, and the id of an upload to its ``bottle``."""
    settings = plant.copy(tmp_path_factory.mktemp("openapi") / "data")
    database = Database(settings)
    registry = Registry(database, settings)
    for version in (2, 1):  # so that there is one to roll back to, whatever other tests have come before
        registry.promote("gravel", version, reason="", actor="test")
    options = ServeOptions(replicas=1, threads=2, poll_seconds=0.02)
    scorer = Scorer(registry, options, "r1")
    doorkeeper = Authenticator(Keys(database), database.project, loopback=True)
    app = create_app(scorer, registry, plane(registry, scorer), doorkeeper, options, database, settings)
    files = folder()
    catalog = Catalog(database, settings)
    request = UploadRequest.model_validate(announced(files))
    upload = catalog.begin_upload("bottle", request).id
    catalog.receive("bottle", upload, memoryview(framed(files.values())))
    catalog.commit("bottle", upload, actor="test")
    searches = Submissions(database)
    ended = searches.submit("default", "test", SubmitRequest(dataset="bottle"), catalog, most=20).id
    yard = Yard(database, settings, searches)
    yard.begin(ended, "ended")
    yard.complete(ended)
    # Of nothing but random bytes, none would be a picture, a packed body or an archive.
    noise = strategies.binary(max_size=100)
    schemathesis.openapi.media_type("image/*", strategies.sampled_from(plant.pictures) | noise)
    sound = strategies.sampled_from([plant.pictures[0], zipped(files), framed(list(files.values())[:3])])
    schemathesis.openapi.media_type("application/octet-stream", sound | sound | noise)
    yield schemathesis.openapi.from_asgi("/openapi.json", app), upload, ended
    asgi.shutdown_lifespans()
    database.close()


@pytest.mark.parametrize(("method", "path", "mode"), OPERATIONS, ids=str)
def test_replies_are_those_of_the_document(schema: Any, method: str, path: str, mode: GenerationMode) -> None:
    document_of, upload, ended = schema
    operation = document_of[path][method.upper()]
    # Names and versions made from their patterns are hardly ever those of a model; some are left as they are.
    known = ["bottle"] * 3 if "/datasets" in path else ["gravel", "gravel", "belt"]
    names = strategies.sampled_from([*known, None])
    versions = strategies.sampled_from([None, "1", "champion", "canary", "made"])
    document = describe_api()["paths"][path][method]
    read = {parameter["name"] for parameter in document.get("parameters", []) if parameter["in"] == "query"}
    statuses: Counter[int] = Counter()

    @hypothesis.settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(operation.as_strategy(generation_mode=mode), names, versions)
    def check(case: Any, name: str | None, version: str | None) -> None:
        if mode is GenerationMode.POSITIVE:
            if name is not None and "name" in case.path_parameters:
                case.path_parameters["name"] = name
            if name is not None and "/uploads/{id}" in path:
                case.path_parameters["id"] = upload
            if name is not None and "/searches/{id}" in path:
                case.path_parameters["id"] = ended
            if name is not None and path == "/v1/searches" and method == "post":
                case.body["dataset"] = "bottle"
            if name is not None and "/datasets/{name}/versions/{version}" in path:
                case.path_parameters["version"] = 1
            if version != "made" and "version" in case.query:
                case.query["version"] = version
            if version is None:
                case.query.pop("version", None)
        else:  # parameters that nobody reads are no fault
            hypothesis.assume(set(case.query or {}) <= read)
        response = case.call()
        statuses[response.status_code] += 1
        case.validate_response(response, checks=CHECKS)

    check()
    if mode is GenerationMode.NEGATIVE:
        # 422 for a form whose picture is none, 404 for a name that leads to no route
        assert 400 in statuses
        assert set(statuses) <= {400, 404, 422}
    elif method != "delete" or "versions" not in path:  # most of those that may be deleted are never met
        assert any(status < 300 for status in statuses), statuses
