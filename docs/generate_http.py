"""The HTTP reference and the list of metrics, from the routes, the schemas and the code.

Contract: whatever the app routes, its bodies accept and its answers carry is on the page, with
docstrings for words and made-up receipts for examples. Not covered: bodies of answers other than
the energy object; errors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, get_args

from docstrings import attributes, first
from fastapi import APIRouter
from fastapi.routing import APIRoute
from prometheus_client.parser import text_string_to_metric_families

from greenllm.core import Speculation
from greenllm.energy import receipt
from greenllm.energy.account.totals import Label, Totals
from greenllm.energy.ledger_writer import LedgerState
from greenllm.energy.receipt import Receipt
from greenllm.engine.protocol import Stats
from greenllm.speculation.controller import Arm
from serving import routes
from serving.app import create_app
from serving.config import HttpOptions
from serving.keys.caller import SCOPES
from serving.keys.rules import Rule, rule_of
from serving.metrics import Metrics
from serving.openai import files, fine_tuning, generation, models
from serving.openapi import KNOWN
from serving.receipts import energy_headers, energy_object, link_headers, receipt_object

ROUTERS: tuple[APIRouter, ...] = (
    generation.router,
    models.router,
    files.router,
    fine_tuning.router,
    routes.router,
)
UNKNOWN = Receipt("chatcmpl-0", "bundled", "completed", 1767225600.0, "unmetered", "unknown", False)
Json = Mapping[str, Any]


def http_page() -> str:
    """Routes, bodies, headers and the energy object."""
    found = list(_routes())
    parts = ["# The HTTP API", "## Routes", *_route_parts(found), "## Bodies", _BODIES]
    schemas = [body for route in found if (body := _body(route)) is not None]
    for name, schema in _named(schemas).items():
        parts += [f"### {name}", _one_line(schema.get("description", "")), _field_table(schema)]
    parts += ["## Headers of an answer", _HEADERS, _header_table(), _REPLICAS]
    parts += ["## The energy object", _OBJECT, _value_list()]
    parts += [_object_table(energy_object(KNOWN), energy_object(UNKNOWN))]
    extra = {key: receipt_object(KNOWN)[key] for key in _receipt_keys()}
    parts += ["## The receipt", _RECEIPT, _object_table(extra, receipt_object(UNKNOWN))]
    return "\n\n".join(parts) + "\n"


_BODIES = (
    "Keys that are not listed are refused by name. Ranges of the sampling parameters: see"
    " `SamplingParams` in [the library](library.md)."
)
_WHEN_ABSENT = {"X-Approximate": "absent unless the answer is approximate"}
_REPLICAS = (
    "With `--replicas` an answer also has `X-Replica`, who made it; a request may have"
    " `X-Session-Id`, and goes where earlier ones of its session went. Errors are then also"
    " `replica_lost` (503, or an event in a stream) and `unsupported_with_replicas` (400); samples"
    " of `/metrics` have a label `replica`. See [replicas](../replicas.md)."
)
_HEADERS = (
    "A stream's headers leave before its energy is known: it has those with a star, and the energy"
    " object in a comment `: energy {...}` before `data: [DONE]`. Answers to a key with limits also"
    " have `x-ratelimit-limit-*`, `x-ratelimit-remaining-*` and `x-ratelimit-reset-*`: see"
    " [keys](../keys.md#limits)."
)
_OBJECT = (
    "`usage.energy` in answers, in the last chunk of a stream with `include_usage`, and in the"
    " comment. Figures have three significant digits; what is unknown is null, never 0. The joules"
    " are those of the machine: only the grams are multiplied by the PUE. Active and idle joules"
    " add up to `energy_joules`, those of prefill, decode and draft to `active_joules`."
)
_RECEIPT = "`GET /v1/energy/{request_id}` adds these keys to the energy object."


def _routes() -> Iterator[APIRoute]:
    for router in ROUTERS:
        yield from (route for route in router.routes if isinstance(route, APIRoute))


def _route_parts(found: list[APIRoute]) -> list[str]:
    documented = create_app(_no_state, HttpOptions()).openapi()["paths"]
    visible = [route for route in found if route.include_in_schema]
    if {route.path_format for route in visible} != set(documented):
        raise SystemExit("the app has routes of a router that is not in ROUTERS, or lacks some")
    parts: list[str] = []
    for route in visible:
        aliases = [
            f"`{other.path_format}`"
            for other in found
            if other.endpoint is route.endpoint and other is not route
        ]
        parts.append(f"### {' '.join(sorted(route.methods or ()))} {route.path_format}")
        parts.append(first(route.endpoint))
        if aliases:
            parts.append(f"Also as {', '.join(aliases)}.")
        for method in sorted(route.methods or ()):
            parts.append(_scope(rule_of(method, route.path)))
        if (body := _body(route)) is not None:
            parts.append(f"Body: [{body['title']}](#{body['title'].lower()}).")
    return parts


def _scope(rule: Rule) -> str:
    """What a key needs, where keys are required."""
    if rule.is_open:
        return "Needs no key."
    scopes = "any" if rule.scopes == set(SCOPES) else " or ".join(sorted(rule.scopes))
    return f"Scope: {scopes}."


def _no_state(_: object) -> Any:
    raise NotImplementedError


def _one_line(text: str) -> str:
    return " ".join(text.partition("\n\n")[0].split())


def _body(route: APIRoute) -> Json | None:
    content = (route.openapi_extra or {}).get("requestBody", {}).get("content", {})
    schema: Json | None = content.get("application/json", {}).get("schema")
    return schema


def _named(schemas: list[Json]) -> dict[str, Json]:
    """The bodies, then the objects inside them, each once."""
    named = {schema["title"]: schema for schema in schemas}
    for schema in schemas:
        named |= schema.get("$defs", {})
    return named


def _field_table(schema: Json) -> str:
    required = set(schema.get("required", ()))
    rows = [
        (f"`{name}`", _kind(field), "required" if name in required else _default(field))
        for name, field in schema["properties"].items()
    ]
    return _table(("field", "type", "default"), rows)


def _default(field: Json) -> str:
    return f"`{json.dumps(field['default'])}`" if "default" in field else ""


def _kind(field: Json) -> str:
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in field or "oneOf" in field:
        return " or ".join(map(_kind, field.get("anyOf") or field["oneOf"]))
    if "const" in field or "enum" in field:
        choices = field.get("enum", [field.get("const")])
        return " or ".join(f"`{json.dumps(choice)}`" for choice in choices)
    kind = str(field.get("type", "anything"))
    if kind == "array":
        inner = _kind(field.get("items", {}))
        kind = f"list of ({inner})" if " or " in inner else f"list of {inner}"
    if isinstance(field.get("additionalProperties"), dict):
        kind = f"object of {_kind(field['additionalProperties'])}"
    return kind + _bounds(field)


def _bounds(field: Json) -> str:
    words = {
        "minimum": "at least {}",
        "maximum": "at most {}",
        "minItems": "at least {} items",
        "maxItems": "at most {} items",
        "maxLength": "at most {} characters",
        "maxProperties": "at most {} entries",
    }
    found = [text.format(field[key]) for key, text in words.items() if key in field]
    return f" ({', '.join(found)})" if found else ""


def _header_table() -> str:
    known, unknown = energy_headers(replace(KNOWN, approximate=True)), energy_headers(UNKNOWN)
    early = link_headers(KNOWN.request_id)
    rows = [
        (
            f"`{name}`{' *' if name in early else ''}",
            f"`{value}`",
            "" if name in unknown else _WHEN_ABSENT.get(name, "absent"),
        )
        for name, value in known.items()
    ]
    return _table(("header", "example", "when unknown"), rows)


def _value_list() -> str:
    kinds = ("Status", "Attribution", "Outcome")
    lines = [f"- `{kind.lower()}`: {_choices(get_args(getattr(receipt, kind)))}" for kind in kinds]
    return "\n".join(lines)


def _choices(values: tuple[str, ...]) -> str:
    return ", ".join(f"`{value}`" for value in values)


def _receipt_keys() -> list[str]:
    return [key for key in receipt_object(KNOWN) if key not in energy_object(KNOWN)]


def _object_table(known: Json, unknown: Json) -> str:
    rows = [
        (f"`{key}`", f"`{json.dumps(value)}`", _absent(unknown[key]), _meaning(key))
        for key, value in known.items()
    ]
    return _table(("key", "example", "when unknown", "what"), rows)


def _absent(value: object) -> str:
    return "null" if value is None else ""


# Keys of the energy object that do not follow from the names of a receipt's fields.
_FIELDS = {"energy_joules": "total_j", "avg_power_watts": "avg_power_w", "created": "created_s"}
_UNITS = (("_joules", "_j"), ("_seconds", "_s"), ("_gco2e", "_g"))


def _meaning(key: str) -> str:
    """What the receipt says of the field or property that a key shows."""
    name = _FIELDS.get(key, key.removeprefix("carbon_"))
    for long, short in _UNITS:
        name = name.removesuffix(long) + short if name.endswith(long) else name
    if name == "energy_kwh":
        return "The total, in kWh."
    if name == "object":
        return "The kind of the object."
    return attributes(Receipt).get(name) or first(getattr(Receipt, name))


def metrics_page() -> str:
    """Every metric `GET /metrics` has, its type, labels and help."""
    counts: dict[str, Any] = {spec.name: 0 for spec in fields(Stats)}
    arm = Arm(Speculation("prompt_lookup"), num_steps=1, mean_tokens=1.0, mean_drafted=1.0)
    stats = Stats(**{**counts, "totals": Totals(), "arms": {1: [arm]}})
    spent_j = {Label("cpu", "decode", "bundled", ""): 1.0}
    metrics = Metrics(lambda: stats, lambda: spent_j, lambda: 0, LedgerState)
    metrics.observe(KNOWN)
    rows = []
    for family in text_string_to_metric_families(metrics.render().decode()):
        # Whether these are there depends on the environment.
        if family.name.endswith("_created"):
            continue
        labels = {label for sample in family.samples for label in sample.labels}
        name = family.name + ("_total" if family.type == "counter" else "")
        cells = (f"`{name}`", family.type, ", ".join(sorted(labels - {"le"})), family.documentation)
        rows.append(cells)
    table = _table(("metric", "type", "labels", "what"), rows)
    return f"# Metrics\n\n`GET /metrics`, in the text format of Prometheus.\n\n{table}\n"


def _table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [headings, tuple("---" for _ in headings), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
