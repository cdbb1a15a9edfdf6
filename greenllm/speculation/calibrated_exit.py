"""Where approximate answers leave the model, and how sure its exit has to be.

Contract: a model's config.json may say how its exits were calibrated, under
`greenllm_exit_thresholds`: for a number of layers, thresholds by the share of tokens that were then
the whole model's, such as `{"4": {"0.95": 0.71}}`. A request names such a share, or a threshold of
its own. No torch.

Not covered: calibrating (see `evals.calibrate`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from greenllm.core import Approximation, InvalidRequestError
from greenllm.model.info import LoadError

EXIT_THRESHOLDS = "greenllm_exit_thresholds"
_FIELD = "approximate"


@dataclass(frozen=True, slots=True)
class CalibratedExit:
    """An exit after `layer` layers, and thresholds by the agreement they were calibrated for."""

    layer: int
    thresholds: Mapping[float, float] = field(default_factory=dict)

    def approximation(self, agreement: float | None, threshold: float | None) -> Approximation:
        """What a request asks for: an agreement or a threshold.

        Raises:
            InvalidRequestError: it names both or neither, or an agreement that is not there.
        """
        if threshold is not None and agreement is None:
            return Approximation(self.layer, threshold)
        if agreement is None or threshold is not None:
            raise InvalidRequestError(f"{_FIELD} needs an agreement or a threshold", _FIELD)
        known = sorted(self.thresholds)
        found = next((share for share in known if share >= agreement), None)
        if not 0 < agreement < 1:
            raise InvalidRequestError(
                f"agreement must be in (0, 1), got {agreement}", f"{_FIELD}.agreement"
            )
        if found is None:
            offer = f"only for {', '.join(map(str, known))}" if known else "for no agreement"
            raise InvalidRequestError(
                f"this model's exit after layer {self.layer} is calibrated {offer}:"
                f" give {_FIELD}.threshold instead",
                f"{_FIELD}.agreement",
            )
        return Approximation(self.layer, self.thresholds[found], found)


def read_exit(layer: int, config: Mapping[str, Any]) -> CalibratedExit:
    """The exit after a layer, with what config.json says of it.

    Raises:
        LoadError: that is not a table of shares and thresholds in (0, 1).
    """
    found: Any = config.get(EXIT_THRESHOLDS, {})
    try:
        pairs = found.get(str(layer), {}).items()
        thresholds = {float(share): float(threshold) for share, threshold in pairs}
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise LoadError(f"{EXIT_THRESHOLDS} in config.json is no table: {error}") from error
    if not all(0 < value < 1 for pair in thresholds.items() for value in pair):
        raise LoadError(f"{EXIT_THRESHOLDS} in config.json has values that are not in (0, 1)")
    return CalibratedExit(layer, thresholds)
