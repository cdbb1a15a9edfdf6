"""Models and adapters: what is served, and `POST /v1/load_lora_adapter` as vLLM names it.

Contract: adapters come and go while requests run; a request keeps the adapter it began with. Files
are read in a thread of their own. An adapter belongs to the key that loaded it, or whose job made
it: others do not see it. One that an administrator loads, or that is in the server's folder, is
everybody's. Where files are, and what is in flight, is told to administrators and owners only.

Not covered: uploads; adapters come from folders of the server.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest

from greenllm.core import EVERYBODY
from greenllm.engine.drafting import Drafting
from greenllm.model.adapter_folders import AdapterNameError, owner_of
from greenllm.model.adapters import AdapterInfo, UnknownAdapterError
from greenllm.model.lora_config import AdapterError
from greenllm.runner.threads import ThreadPlan
from greenllm.served import Served
from greenllm.speculation.calibrated_exit import CalibratedExit
from serving.auth import Asking, audit
from serving.errors import ApiError
from serving.http import Server, body_schema, parsed_body
from serving.jobs.store import FINE_TUNED
from serving.keys.caller import Caller
from serving.openai.schemas import LoadAdapterBody, UnloadAdapterBody
from serving.state import ServerState

router = APIRouter()


@router.get("/v1/models")
async def models(state: Server, caller: Asking) -> dict[str, Any]:
    """List the base model and the adapters that the caller may use."""
    served = state.models.default
    adapters = await asyncio.to_thread(served.engine.adapters.list)
    trained = await asyncio.to_thread(state.jobs.store.models)
    seen = [info for info in adapters if caller.may_see(info.owner)]
    data = [_model(served, caller)]
    data += [_adapter(served, info, trained.get(info.name, info.name), caller) for info in seen]
    return {"object": "list", "data": data}


@router.get("/v1/models/{model_id:path}")
async def model(state: Server, caller: Asking, model_id: str) -> dict[str, Any]:
    """Describe the base model or an adapter."""
    target = state.models.split(model_id, caller)
    info = await asyncio.to_thread(state.models.adapter, target)
    if info is None:
        return _model(target.served, caller)
    # An adapter that a job has made keeps its job's name.
    name = model_id if model_id.startswith(FINE_TUNED) else info.name
    return _adapter(target.served, info, name, caller)


def _model(served: Served, caller: Caller) -> dict[str, Any]:
    info = served.info
    return {
        "id": served.name,
        "object": "model",
        "created": info.created_s,
        "owned_by": "greenllm",
        "root": info.source if caller.is_admin else None,
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


def _adapter(served: Served, info: AdapterInfo, name: str, caller: Caller) -> dict[str, Any]:
    is_own = caller.may_change(info.owner)
    return {
        "id": name,
        "object": "model",
        "created": int(info.registered_s),
        "owned_by": "greenllm" if info.owner in (None, EVERYBODY) else info.owner,
        "root": str(info.folder) if caller.is_admin else None,
        "parent": served.name,
        "aliases": [f"{base}:{info.name}" for base in served.names],
        "parameters": info.facts.num_parameters,
        "rank": info.facts.rank,
        "targets": list(info.facts.targets),
        "adapter_bytes": info.facts.num_bytes,
        "resident": info.resident if is_own else None,
        "requests_in_flight": info.in_flight if is_own else None,
        "max_model_len": served.info.context_length,
    }


@router.post("/v1/load_lora_adapter", openapi_extra=body_schema(LoadAdapterBody))
async def load_lora_adapter(state: Server, caller: Asking, http: HttpRequest) -> dict[str, Any]:
    """Make an adapter known under a name; answers with its entry in `/v1/models`."""
    body = await parsed_body(http, state, LoadAdapterBody)
    folder = Path(body.lora_path)
    await asyncio.to_thread(_check_load, state, caller, body.lora_name, folder)
    add, owner = state.models.default.engine.adapters.add, caller.owner
    try:
        info = await asyncio.to_thread(
            add, body.lora_name, folder, owner=EVERYBODY if caller.is_admin else owner
        )
    except AdapterError as error:
        name = "lora_name" if isinstance(error, AdapterNameError) else "lora_path"
        raise ApiError(400, str(error), param=name) from error
    audit(http, "adapter.load", f"{body.lora_name} from {body.lora_path}")
    return _adapter(state.models.default, info, info.name, caller)


def _check_load(state: ServerState, caller: Caller, name: str, folder: Path) -> None:
    """Refuse what would come from, or in the place of, somebody else's adapter."""
    if state.config.replicas is not None and not caller.is_admin:
        message = "with --replicas adapters are everybody's: only administrators load them"
        raise ApiError(403, message, code="missing_scope")
    if not caller.may_see(owner_of(folder)):
        message = f"{folder} is outside of the folders adapters may come from (adapter_dirs)"
        raise ApiError(400, message, param="lora_path")
    if _is_hidden(state, caller, name):
        raise ApiError(400, f"the name {name!r} is taken; choose another", param="lora_name")


def _is_hidden(state: ServerState, caller: Caller, name: str) -> bool:
    """Whether there is an adapter of this name that the caller may not see."""
    try:
        return not caller.may_see(state.models.default.engine.adapters.find(name).owner)
    except AdapterError:
        return False


@router.post("/v1/unload_lora_adapter", openapi_extra=body_schema(UnloadAdapterBody))
async def unload_lora_adapter(state: Server, caller: Asking, http: HttpRequest) -> dict[str, Any]:
    """Forget an adapter; requests that use it finish, new ones get 404."""
    body = await parsed_body(http, state, UnloadAdapterBody)
    adapters = state.models.default.engine.adapters
    try:
        info = await asyncio.to_thread(adapters.find, body.lora_name)
        if not caller.may_see(info.owner):
            raise UnknownAdapterError(body.lora_name)
        if not caller.may_change(info.owner):
            message = f"{body.lora_name!r} is everybody's: only administrators unload it"
            raise ApiError(403, message, param="lora_name", code="missing_scope")
        await asyncio.to_thread(adapters.remove, body.lora_name)
    except UnknownAdapterError as error:
        message = f"{error}: GET /v1/models"
        raise ApiError(404, message, param="lora_name", code="model_not_found") from error
    except AdapterError as error:
        raise ApiError(400, str(error), param="lora_name") from error
    audit(http, "adapter.unload", body.lora_name)
    return {"id": body.lora_name, "object": "model", "deleted": True}
