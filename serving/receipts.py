"""A receipt on the wire: headers, the `energy` object, the comment at the end of a stream.

Figures are rounded to three significant digits: finer ones would tell clients about each other
(PLATYPUS). The ledger keeps the full precision. What is unknown is absent from the headers and null
in the object.
"""

from __future__ import annotations

import json
from typing import Any

from greenllm.energy.receipt import Receipt
from greenllm.energy.units import joules_to_kwh, plain_decimal, rounded


def energy_object(receipt: Receipt) -> dict[str, Any]:
    """`usage.energy`: the receipt with rounded figures."""
    total_j = receipt.total_j
    figures = {
        "request_id": receipt.request_id,
        "adapter": receipt.adapter,
        "energy_joules": total_j,
        "active_joules": receipt.active_j,
        "idle_joules": receipt.idle_j,
        "prefill_joules": receipt.prefill_j,
        "decode_joules": receipt.decode_j,
        "draft_joules": receipt.draft_j,
        "domains_joules": receipt.domains_j,
        "joules_per_token": receipt.joules_per_token,
        "drafted_tokens": receipt.drafted_tokens,
        "accepted_tokens": receipt.accepted_tokens,
        "approximate": receipt.approximate,
        "mean_layers": receipt.mean_layers,
        "agreement_target": receipt.agreement_target,
        "energy_kwh": None if total_j is None else joules_to_kwh(total_j),
        "avg_power_watts": receipt.avg_power_w,
        "duration_seconds": receipt.duration_s,
        "flops": receipt.flops,
        "method": receipt.method,
        "measured": _is_measured(receipt),
        "uncertainty": receipt.uncertainty,
        "status": receipt.status,
        "attribution": receipt.attribution,
        "gco2e": receipt.gco2e,
        "operational_gco2e": receipt.operational_g,
        "embodied_gco2e": receipt.embodied_g,
        "carbon_intensity_g_per_kwh": receipt.intensity_g_per_kwh,
        "carbon_intensity_zone": receipt.intensity_zone,
        "carbon_intensity_source": receipt.intensity_source,
        "carbon_intensity_year": receipt.intensity_year,
        "pue": receipt.pue,
    }
    # Asked for or configured, not measured: there is nothing to round.
    return rounded(figures, exact=("agreement_target", "pue"))


def receipt_object(receipt: Receipt) -> dict[str, Any]:
    """`GET /v1/energy/{id}`: the energy object with what was asked and done."""
    return {
        "object": "energy.receipt",
        "model": receipt.model,
        "asked_model": receipt.asked_model,
        "endpoint": receipt.endpoint,
        "outcome": receipt.outcome,
        "http_status": receipt.http_status,
        "created": int(receipt.created_s),
        "prompt_tokens": receipt.prompt_tokens,
        "cached_tokens": receipt.cached_tokens,
        "completion_tokens": receipt.completion_tokens,
        "key": receipt.key,
        "team": receipt.team,
        "user": receipt.user,
        "metadata": dict(receipt.metadata),
        **energy_object(receipt),
    }


def link_headers(request_id: str) -> dict[str, str]:
    """Headers that can leave before the energy is known."""
    return {
        "X-Request-Id": request_id,
        "Link": f'</v1/energy/{request_id}>; rel="describedby"',
    }


def energy_headers(receipt: Receipt) -> dict[str, str]:
    """All headers of a finished answer."""
    total_j = receipt.total_j
    figures = {
        "X-Energy-Joules": total_j,
        "X-Energy-Active-Joules": receipt.active_j,
        "X-Energy-Joules-Per-Token": receipt.joules_per_token,
        "X-Energy-Kwh": None if total_j is None else joules_to_kwh(total_j),
        "X-Energy-Avg-Power-Watts": receipt.avg_power_w,
        "X-Energy-Duration-Seconds": receipt.duration_s,
        "X-Energy-Uncertainty": receipt.uncertainty,
        "X-Carbon-Gco2e": receipt.gco2e,
        "X-Carbon-Operational-Gco2e": receipt.operational_g,
    }
    headers = link_headers(receipt.request_id)
    headers |= {
        name: plain_decimal(value, 3) for name, value in figures.items() if value is not None
    }
    if receipt.approximate:
        headers["X-Approximate"] = "true"
    headers["X-Energy-Method"] = receipt.method
    headers["X-Energy-Measured"] = "true" if _is_measured(receipt) else "false"
    headers["X-Energy-Status"] = receipt.status
    if receipt.intensity_g_per_kwh is not None:
        headers["X-Carbon-Intensity"] = _intensity(receipt)
    return headers


def _is_measured(receipt: Receipt) -> bool:
    """Whether a sensor counted its joules; nobody has counted joules that are not known."""
    return receipt.measured and receipt.total_j is not None


def comment(receipt: Receipt) -> str:
    """The SSE comment before `[DONE]`."""
    return f": energy {json.dumps(energy_object(receipt), separators=(',', ':'))}\n\n"


def _intensity(receipt: Receipt) -> str:
    """`458; zone="WORLD"; source="..."; year=2025`, in ASCII as headers must be."""
    source = (receipt.intensity_source or "").encode("ascii", "replace").decode()
    zone = (receipt.intensity_zone or "").encode("ascii", "replace").decode()
    parts = [
        plain_decimal(receipt.intensity_g_per_kwh or 0.0, 3),
        f'zone="{zone}"',
        'source="{}"'.format(source.replace('"', "'").replace("\n", " ")),
    ]
    if receipt.intensity_year is not None:
        parts.append(f"year={receipt.intensity_year}")
    return "; ".join(parts)
