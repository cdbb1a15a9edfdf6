"""Models and adapters: what is served, and `POST /v1/load_lora_adapter` as vLLM names it.

Contract: adapters come and go while requests run; a request keeps the adapter it began with. Files
are read in a thread of their own. Not covered: uploads; adapters come from folders of the server.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest

from greenllm.engine.drafting import Drafting
from greenllm.model.adapter_folders import AdapterNameError
from greenllm.model.adapters import AdapterInfo, UnknownAdapterError
from greenllm.model.lora_config import AdapterError
from greenllm.runner.threads import ThreadPlan
from greenllm.served import Served
from greenllm.speculation.calibrated_exit import CalibratedExit
from serving.errors import ApiError
from serving.http import Server, body_schema, parsed_body
from serving.jobs.store import FINE_TUNED
from serving.openai.schemas import LoadAdapterBody, UnloadAdapterBody
from serving.state import state_of

router = APIRouter()


@router.get("/v1/models")
async def models(state: Server) -> dict[str, Any]:
    """List the base model and its adapters."""
    served = state.models.default
    adapters = await asyncio.to_thread(served.engine.adapters.list)
    trained = await asyncio.to_thread(state.jobs.store.models)
    data = [_model(served)]
    data += [_adapter(served, info, trained.get(info.name, info.name)) for info in adapters]
    return {"object": "list", "data": data}


@router.get("/v1/models/{model_id:path}")
async def model(state: Server, model_id: str) -> dict[str, Any]:
    """Describe the base model or an adapter."""
    target = state.models.split(model_id)
    info = await asyncio.to_thread(state.models.adapter, target)
    if info is None:
        return _model(target.served)
    # An adapter that a job has made keeps its job's name.
    name = model_id if model_id.startswith(FINE_TUNED) else info.name
    return _adapter(target.served, info, name)


def _model(served: Served) -> dict[str, Any]:
    info = served.info
    return {
        "id": served.name,
        "object": "model",
        "created": info.created_s,
        "owned_by": "greenllm",
        "root": info.source,
        "parent": None,
        "aliases": list(served.aliases),
        "architecture": info.architecture,
        "parameters": info.parameters,
        "weight_bytes": info.weight_bytes,
        "quantization": info.quantization,
        "unquantized_layers": list(info.kept_layers),
        "dtype": info.dtype,
        "device": info.device,
        "runner": info.runner,
        "threads": _threads(served.threads),
        "max_model_len": info.context_length,
        "vocab_size": info.vocab_size,
        "license": info.licence,
        "speculation": _speculation(served.drafting),
        "approximate": _approximate(served.drafting.exit),
    }


def _threads(plan: ThreadPlan) -> list[dict[str, int]]:
    """CPU threads of a step, by how many tokens it has at least."""
    pairs = zip(plan.sizes, plan.threads, strict=True)
    return [{"from_tokens": size, "threads": threads} for size, threads in pairs]


def _speculation(drafting: Drafting) -> dict[str, Any]:
    """What requests get that do not say, and what they may ask for."""
    default = drafting.speculator.default
    return {
        "method": default.method,
        "num_tokens": default.num_tokens,
        "methods": list(drafting.speculator.methods),
        "auto_leaves_out": drafting.speculator.hopeless,
        "exit_layer": None if drafting.exit is None else drafting.exit.layer,
        "draft_model": drafting.draft_model,
    }


def _approximate(exit_: CalibratedExit | None) -> dict[str, Any] | None:
    """Where approximate answers leave the model, and the agreements they may ask for."""
    if exit_ is None:
        return None
    return {"exit_layer": exit_.layer, "agreements": sorted(exit_.thresholds)}


def _adapter(served: Served, info: AdapterInfo, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": int(info.registered_s),
        "owned_by": "greenllm",
        "root": str(info.folder),
        "parent": served.name,
        "aliases": [f"{base}:{info.name}" for base in served.names],
        "parameters": info.facts.num_parameters,
        "rank": info.facts.rank,
        "targets": list(info.facts.targets),
        "adapter_bytes": info.facts.num_bytes,
        "resident": info.resident,
        "requests_in_flight": info.in_flight,
        "max_model_len": served.info.context_length,
    }


@router.post("/v1/load_lora_adapter", openapi_extra=body_schema(LoadAdapterBody))
async def load_lora_adapter(http: HttpRequest) -> dict[str, Any]:
    """Make an adapter known under a name; answers with its entry in `/v1/models`."""
    state = state_of(http)
    body = await parsed_body(http, state, LoadAdapterBody)
    served, folder = state.models.default, Path(body.lora_path)
    try:
        info = await asyncio.to_thread(served.engine.adapters.add, body.lora_name, folder)
    except AdapterError as error:
        name = "lora_name" if isinstance(error, AdapterNameError) else "lora_path"
        raise ApiError(400, str(error), param=name) from error
    return _adapter(served, info, info.name)


@router.post("/v1/unload_lora_adapter", openapi_extra=body_schema(UnloadAdapterBody))
async def unload_lora_adapter(http: HttpRequest) -> dict[str, Any]:
    """Forget an adapter; requests that use it finish, new ones get 404."""
    state = state_of(http)
    body = await parsed_body(http, state, UnloadAdapterBody)
    try:
        await asyncio.to_thread(state.models.default.engine.adapters.remove, body.lora_name)
    except UnknownAdapterError as error:
        message = f"{error}: GET /v1/models"
        raise ApiError(404, message, param="lora_name", code="model_not_found") from error
    except AdapterError as error:
        raise ApiError(400, str(error), param="lora_name") from error
    return {"id": body.lora_name, "object": "model", "deleted": True}
