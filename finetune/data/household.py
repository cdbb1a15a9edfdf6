"""The example data set, `--data example`: notes on a household's energy, as JSON.

Contract: the same examples everywhere; no note is there twice. Written for this project, so that a
first fine-tune needs no download. Not covered: other languages, units other than kWh.
"""

from __future__ import annotations

import json
import random

NAME = "example"
SIZE = 600

_DEVICES = (
    "fridge", "oven", "washer", "dryer", "heater", "lamp", "kettle", "computer", "television",
    "freezer", "fan", "dishwasher", "charger", "pump", "toaster",
)  # fmt: skip
_ROOMS = (
    "kitchen", "cellar", "bathroom", "garage", "office", "bedroom", "hall", "attic", "garden",
)  # fmt: skip
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_NOTES = (
    "On {day} the {device} in the {room} used {kwh} kWh.",
    "The {room} {device} took {kwh} kWh on {day}.",
    "{day}: {kwh} kWh for the {device} in the {room}.",
    "We read {kwh} kWh at the {device} ({room}) on {day}.",
    "{kwh} kWh went into the {device} of the {room} on {day}.",
)


def household_rows(seed: str = "household", size: int = SIZE) -> list[dict[str, str]]:
    """Prompts and completions; another seed gives others, some of which may be the same."""
    rng = random.Random(seed)
    rows: dict[str, str] = {}
    while len(rows) < size:
        found = {
            "device": rng.choice(_DEVICES),
            "room": rng.choice(_ROOMS),
            "day": rng.choice(_DAYS),
            "kwh": rng.randrange(1, 100) / 10,
        }
        rows.setdefault("Log: " + rng.choice(_NOTES).format(**found), json.dumps(found))
    return [{"prompt": prompt, "completion": completion} for prompt, completion in rows.items()]
