"""An engine in this process, on a model that is loaded as a server would load it.

Not covered: HTTP, adapters, drafters beyond the one that is given.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the server; read when torch is loaded

from evals.servers import require_model
from greenllm.config import load
from greenllm.core import GreenllmError
from greenllm.energy.account.account import Account
from greenllm.energy.carbon.policy import CarbonPolicy
from greenllm.energy.meters.choose import open_meter
from greenllm.engine.native import NativeEngine
from greenllm.engine.protocol import BatchLimits
from greenllm.load import load_engine
from greenllm.options import EngineConfig, MeterOptions
from greenllm.runner.base import Runner
from greenllm.runner.warmup import warm_up
from greenllm.speculation.speculator import Speculator
from greenllm.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Bench:
    """A loaded model to build engines on."""

    runner: Runner
    tokenizer: Tokenizer

    def engine(
        self, account: Account, batch: int = 64, speculator: Speculator | None = None
    ) -> NativeEngine:
        """A fresh engine of at most `batch` sequences that shares the runner.

        It has no prefix cache, so that rounds are alike.
        """
        return NativeEngine(
            self.runner,
            account,
            CarbonPolicy(None),
            text_stream=self.tokenizer.stream,
            clock=time.monotonic,
            limits=BatchLimits(max_num_seqs=batch, prefix_cache=False),
            speculator=speculator,
        )

    def account(self, meter: str = "modelled") -> Account:
        """A fresh account, warmed up; the meter is called as for `--meter`."""
        opened, _ = open_meter(MeterOptions(meter=meter))
        account = Account(opened, self.runner.shape, clock=time.monotonic)
        warm_up(self.runner, account)
        account.start_serving()
        return account


def load_bench(model: str, threads: int, **flags: str) -> Bench:
    """Load a model as the server would with these flags.

    Raises:
        LoadError: it is not there, or cannot be loaded.
    """
    require_model(model)
    flags |= {"model": model, "threads": str(threads), "meter": "modelled", "engine": "native"}
    config = load(EngineConfig, flags=flags)
    served = load_engine(config, *open_meter(config))
    if not isinstance(served.engine, NativeEngine):
        raise GreenllmError(f"{model} was not loaded into the native engine")
    return Bench(served.engine.runner, served.tokenizer)
