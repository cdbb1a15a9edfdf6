"""Which scope each route needs. A route that is not in the table is for administrators alone.

This is the one place where it is said, and `serving.auth.admit` the one where it is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from serving.keys.caller import SCOPES, Scope


@dataclass(frozen=True, slots=True)
class Rule:
    """What a route asks of a caller: one of the scopes; an open route asks nothing.

    One that `spends` needs tokens, joules and grams that are left.
    """

    scopes: frozenset[Scope]
    is_open: bool = False
    spends: bool = False

    @property
    def is_generation(self) -> bool:
        """Whether the engine works for it."""
        return self.spends and "inference" in self.scopes


_OPEN = Rule(frozenset(), is_open=True)
_ANY = Rule(frozenset(SCOPES))
_MODELS = Rule(frozenset({"inference", "finetune"}))
_INFERENCE = Rule(frozenset({"inference"}))
_GENERATION = Rule(frozenset({"inference"}), spends=True)
_FINETUNE = Rule(frozenset({"finetune"}))
_TRAINING = Rule(frozenset({"finetune"}), spends=True)
_METRICS = Rule(frozenset({"metrics"}))
_ADMIN = Rule(frozenset({"admin"}))

_JOBS = "/v1/fine_tuning/jobs"
RULES: Final[Mapping[str, Rule]] = {
    "GET /openapi.json": _ANY,
    "GET /health": _OPEN,
    "GET /ready": _OPEN,
    "GET /metrics": _METRICS,
    "GET /v1/energy": _ANY,
    "GET /v1/energy/{request_id}": _ANY,
    "GET /v1/models": _MODELS,
    "GET /v1/models/{model_id:path}": _MODELS,
    "POST /v1/load_lora_adapter": _FINETUNE,
    "POST /v1/unload_lora_adapter": _FINETUNE,
    "POST /v1/chat/completions": _GENERATION,
    "POST /v1/completions": _GENERATION,
    "POST /tokenize": _INFERENCE,
    "POST /v1/tokenize": _INFERENCE,
    "POST /detokenize": _INFERENCE,
    "POST /v1/detokenize": _INFERENCE,
    "GET /tokenizer_info": _INFERENCE,
    "GET /v1/tokenizer_info": _INFERENCE,
    "GET /v1/files": _FINETUNE,
    "POST /v1/files": _FINETUNE,
    "GET /v1/files/{file_id}": _FINETUNE,
    "GET /v1/files/{file_id}/content": _FINETUNE,
    "DELETE /v1/files/{file_id}": _FINETUNE,
    f"GET {_JOBS}": _FINETUNE,
    f"POST {_JOBS}": _TRAINING,
    f"GET {_JOBS}/{{job_id}}": _FINETUNE,
    f"GET {_JOBS}/{{job_id}}/events": _FINETUNE,
    f"GET {_JOBS}/{{job_id}}/checkpoints": _FINETUNE,
    f"POST {_JOBS}/{{job_id}}/cancel": _FINETUNE,
    f"POST {_JOBS}/{{job_id}}/pause": _FINETUNE,
    f"POST {_JOBS}/{{job_id}}/resume": _TRAINING,
}


def rule_of(method: str, path: str) -> Rule:
    """The rule of a route, by its path with the names of its parameters."""
    return RULES.get(f"{method} {path}", _ADMIN)
