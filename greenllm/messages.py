"""Messages of a conversation: what may stand in them, and how chat templates want them.

Contract: HTTP and the library take the same messages. A content is a text, a list of text parts, or
None for an empty one. Not covered: images, sound, files, calls of tools.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, cast, get_args

from greenllm.core import InvalidRequestError

Role = Literal["system", "developer", "user", "assistant"]
_KEYS = frozenset({"role", "content", "name"})
_SHAPE = "a conversation is a text, or messages: dictionaries with role and content"


def plain(role: Role, content: str | Iterable[str] | None, name: str | None) -> dict[str, str]:
    """One message as templates want it; `content` is a text or the texts of its parts."""
    text = content if isinstance(content, str) else "".join(content or ())
    shown = "system" if role == "developer" else role
    return {"role": shown, "content": text, **({"name": name} if name else {})}


def refusal_of_role(role: object) -> str | None:
    """Why a role of tools cannot be served."""
    return f"the role {role} is not supported" if role in ("tool", "function") else None


def refusal_of_parts(content: object) -> str | None:
    """Why a content cannot be served that is more than text."""
    parts = content if isinstance(content, list | tuple) else ()
    kinds = [part.get("type") for part in parts if isinstance(part, Mapping)]
    other = next((kind for kind in kinds if isinstance(kind, str) and kind != "text"), None)
    return None if other is None else f"parts of type {other} are not supported, only text"


def conversation(messages: object) -> list[dict[str, str]]:
    """Messages of a Python caller as templates want them; a text is one message of the user.

    Raises:
        InvalidRequestError: they are none, or hold what is not served; `param` says where.
    """
    if isinstance(messages, str):
        return [plain("user", messages, None)]
    if not isinstance(messages, Iterable) or isinstance(messages, Mapping):
        raise InvalidRequestError(f"{_SHAPE}, not {messages!r:.80}", "messages")
    found = [_message(f"messages.{place}", one) for place, one in enumerate(messages)]
    if not found:
        raise InvalidRequestError(f"{_SHAPE}; there is none", "messages")
    return found


def _message(where: str, message: object) -> dict[str, str]:
    if not isinstance(message, Mapping):
        raise InvalidRequestError(f"{_SHAPE}; {where} is {message!r:.80}", where)
    role, name = message.get("role"), message.get("name")
    if refusal := refusal_of_role(role):
        raise InvalidRequestError(f"{where}.role: {refusal}", f"{where}.role")
    if role not in get_args(Role):
        allowed = ", ".join(get_args(Role))
        raise InvalidRequestError(
            f"{where}.role must be one of {allowed}, not {role!r:.80}", f"{where}.role"
        )
    if name is not None and not isinstance(name, str):
        raise InvalidRequestError(f"{where}.name must be a text, not {name!r:.80}", f"{where}.name")
    for key, value in message.items():
        # An answer's message that is sent back has keys for what it does not carry.
        if key not in _KEYS and value not in (None, [], ()):
            raise InvalidRequestError(f"{where}.{key} is not supported", f"{where}.{key}")
    return plain(cast(Role, role), _texts(f"{where}.content", message), name)


def _texts(where: str, message: Mapping[str, Any]) -> str | list[str]:
    content = message.get("content", ...)
    if refusal := refusal_of_parts(content):
        raise InvalidRequestError(f"{where}: {refusal}", where)
    if content is None or isinstance(content, str):
        return content or ""
    texts = [_text_of(part) for part in content] if isinstance(content, list | tuple) else [None]
    if any(text is None for text in texts):
        given = "missing" if content is ... else f"{content!r:.80}"
        raise InvalidRequestError(
            f'{where} must be a text or a list of {{"type": "text", "text": ...}}, but is {given}',
            where,
        )
    return [text for text in texts if text is not None]


def _text_of(part: object) -> str | None:
    if not isinstance(part, Mapping) or part.get("type") != "text":
        return None
    text = part.get("text")
    return text if isinstance(text, str) else None
