"""What the live OpenAPI document declares, and a check of answers against it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from job_api.schemas import PROBLEM_TYPE_PREFIX, Problem, ProblemType

Json = Any


@dataclass(frozen=True)
class Operation:
    """One method of one path."""

    method: str
    path: str
    document: dict[str, Any]
    components: dict[str, Any]

    @property
    def key(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def role(self) -> str | None:
        role: str | None = self.document.get("x-role")
        return role

    @property
    def unbound(self) -> bool:
        return bool(self.document.get("x-unbound"))

    @property
    def takes_body(self) -> bool:
        return "requestBody" in self.document

    def body_schema(self) -> Json:
        return self.document["requestBody"]["content"]["application/json"]["schema"]

    def parameters(self, where: str) -> dict[str, Json]:
        """Schemas of the parameters in the path or the query, by name."""
        found = self.document.get("parameters", [])
        return {parameter["name"]: parameter["schema"] for parameter in found if parameter["in"] == where}

    def resolve(self, schema: Json) -> Json:
        while "$ref" in schema:
            schema = self.components[schema["$ref"].removeprefix("#/components/schemas/")]
        return schema

    def check(self, answer: httpx.Response) -> None:
        """The answer's status, type and document are as declared."""
        said = f"{self.key} -> {answer.status_code} {answer.text[:300]}"
        declared = self.document["responses"].get(str(answer.status_code))
        assert declared is not None, f"undeclared: {said}"
        if answer.status_code >= 400:
            problem_of(answer)
        if not answer.content:
            return
        kind = answer.headers["content-type"].partition(";")[0]
        assert kind in declared["content"], f"undeclared {kind}: {said}"
        schema = declared["content"][kind].get("schema", {})
        if kind == "application/json":
            assert schema, f"no schema is declared: {said}"
            assert self.fits(answer.json(), schema), said

    def fits(self, value: Json, schema: Json) -> bool:  # noqa: PLR0911 - one for each keyword
        """Whether a value has the shape of a schema: types, required and declared fields, enums, alternatives."""
        schema = self.resolve(schema)
        if "anyOf" in schema:
            return any(self.fits(value, one) for one in schema["anyOf"])
        if "enum" in schema:
            return value in schema["enum"]
        match schema.get("type"):
            case "object":
                fields, rest = (
                    schema.get("properties", {}),
                    schema.get("additionalProperties", "properties" not in schema),
                )
                return (
                    isinstance(value, dict)
                    and set(schema.get("required", [])) <= set(value)
                    and (bool(rest) or set(value) <= set(fields))
                    and all(self.fits(value[name], fields[name]) for name in value if name in fields)
                )
            case "array":
                return isinstance(value, list) and all(self.fits(item, schema["items"]) for item in value)
            case "string":
                return isinstance(value, str)
            case "integer":
                return isinstance(value, int) and not isinstance(value, bool)
            case "number":
                return isinstance(value, (int, float)) and not isinstance(value, bool)
            case "boolean":
                return isinstance(value, bool)
            case "null":
                return value is None
        return set(schema) <= {"title", "description"}


def operations(root: str) -> list[Operation]:
    """All operations of the running service."""
    document = httpx.get(f"{root}/openapi.json", timeout=60).raise_for_status().json()
    components = document["components"]["schemas"]
    return [
        Operation(method.upper(), path, operation, components)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def problem_of(answer: httpx.Response) -> Problem:
    """The error document of an answer, which must be one."""
    assert answer.status_code >= 400, answer.text[:300]
    assert answer.headers["content-type"] == "application/problem+json", answer.text[:300]
    problem = Problem.model_validate_json(answer.content)
    assert problem.type.startswith(PROBLEM_TYPE_PREFIX)
    assert problem.type.removeprefix(PROBLEM_TYPE_PREFIX) in set(ProblemType)
    assert problem.status == answer.status_code
    assert problem.title
    assert problem.detail
    return problem


def kind_of(answer: httpx.Response) -> str:
    """The last word of an error's type."""
    return problem_of(answer).type.removeprefix(PROBLEM_TYPE_PREFIX)


def texts(value: Json, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a document the texts stand."""
    if isinstance(value, str):
        yield where
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from texts(item, (*where, key))


def replaced(value: Json, where: tuple[Any, ...], new: Json) -> Json:
    """A copy of a document with another value at one place."""
    if not where:
        return new
    key, *rest = where
    if isinstance(value, dict):
        return {name: replaced(item, tuple(rest), new) if name == key else item for name, item in value.items()}
    return [replaced(item, tuple(rest), new) if at == key else item for at, item in enumerate(value)]
