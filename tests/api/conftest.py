"""The whole HTTP app in this process: everything is real but the model and its machine.

How the app is put together is in `App.__init__`, and nowhere else in these tests.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from safetensors.numpy import save_file

from greenllm.core import Speculation
from greenllm.energy.account.account import Account
from greenllm.energy.carbon.footprint import EmbodiedModel
from greenllm.energy.carbon.grid import IntensityTable, StaticIntensity
from greenllm.energy.carbon.policy import CarbonPolicy
from greenllm.energy.session import open_ledger
from greenllm.engine.drafting import Drafting
from greenllm.engine.native import NativeEngine
from greenllm.engine.protocol import BatchLimits
from greenllm.model.adapter_setup import make_registry
from greenllm.model.lora_config import CONFIG_NAME, WEIGHTS_NAME
from greenllm.model.options import resolve
from greenllm.runner.threads import ThreadPlan
from greenllm.served import Served
from greenllm.speculation.calibrated_exit import CalibratedExit
from greenllm.speculation.speculator import PromptLookup, Speculator
from greenllm.tokenizer import Tokenizer, load_tokenizer
from serving.app import create_app
from serving.config import ServeConfig
from serving.intake import cancel_all
from serving.keys.access import Access
from serving.request_log import Entry
from serving.server import Parts, make_state
from tests.api import trainer
from tests.api.asgi import AppTransport, Exchange
from tests.api.documented import check_documented
from tests.api.machine import LOAD_STEPS, LORA_TARGETS, WIDTH, Machine, SlowTokenizer, Talker
from tests.client import MODEL, Client

ROOT = Path(__file__).parents[2]
URL = "http://localhost"


class App(Client):
    """The app, running, and its clients; `options` are those of `greenllm serve`.

    Whatever it answers has to be in its OpenAPI document.
    """

    def __init__(
        self, folder: Path, tokenizer: Tokenizer, machine: Machine, **options: Any
    ) -> None:
        self.data_dir, self.machine = folder, machine
        self.followed: list[bool] = []
        self.told: list[Entry] = []
        config = ServeConfig(data_dir=folder, device="cpu", meter="modelled", **options)
        runner = Talker(tokenizer, machine.step, name=MODEL, source=str(folder))
        names = tuple(dict.fromkeys((config.served_model_name or MODEL, MODEL)))
        account = Account(machine, runner.shape, clock=machine.clock)
        drafting = Drafting(
            Speculator(
                {"prompt_lookup": PromptLookup(), "early_exit": PromptLookup()},
                Speculation(config.speculative, config.speculative_tokens),
            ),
            CalibratedExit(1, {0.9: 0.5, 0.95: 0.6, 0.99: 0.7, 0.999: 0.8}),
        )
        engine = NativeEngine(
            runner,
            account,
            CarbonPolicy(
                StaticIntensity(IntensityTable.load().lookup(config.zone)),
                config.pue,
                EmbodiedModel.per_vcpu(2),
            ),
            text_stream=tokenizer.stream,
            clock=machine.clock,
            limits=BatchLimits(config.max_num_seqs, config.max_batch_tokens or 2048),
            adapters=make_registry(config, runner.lora_targets, names),
            speculator=drafting.speculator,
        )
        ledger, session_id = open_ledger(config, machine, runner.info.parameters)
        machine.rest(LOAD_STEPS)
        account.start_serving()
        served = Served(
            names[0], names[1:], engine.info, engine, tokenizer, drafting, ThreadPlan.fixed(1)
        )
        parts = Parts(served, ledger, session_id)
        self._app = create_app(
            lambda loop: make_state(config, parts, loop, self._follow), config, self.told.append
        )
        self._transport = AppTransport(self._app)
        self._closing = contextlib.ExitStack()

    def _follow(self, pid: int, is_training: bool) -> None:
        self.followed.append(is_training)

    def start(self) -> App:
        self._transport.start()
        self.http = self._closing.enter_context(self._client())
        self.openai = self._closing.enter_context(self.openai_client("none"))
        return self

    def stop(self) -> None:
        self._closing.close()
        self._transport.stop()

    def _client(self) -> httpx.Client:
        hooks = {"response": [lambda answer: check_documented(self._app.openapi(), answer)]}
        return httpx.Client(base_url=URL, transport=self._transport, event_hooks=hooks)

    def openai_client(self, api_key: str) -> openai.OpenAI:
        """The official client, which takes httpx's and declares its successor's."""
        http: Any = self._client()
        return openai.OpenAI(base_url=f"{URL}/v1", api_key=api_key, max_retries=0, http_client=http)

    def begin(
        self,
        path: str,
        body: dict[str, Any],
        headers: Mapping[str, str] | None = None,
        *,
        blanks: int = 0,
    ) -> Exchange:
        """Post a request, to leave before its answer is there; `blanks` make its body longer."""
        content = json.dumps(body) + " " * blanks
        kind = {"Content-Type": "application/json"}
        request = self.http.build_request(
            "POST", path, content=content, headers={**kind, **(headers or {})}
        )
        return self._transport.begin(request)

    @property
    def access(self) -> Access:
        """Keys, limits and wrong keys, as the app has them."""
        found: Access = self._app.state.server.access
        return found

    def stop_taking(self) -> None:
        """What SIGTERM does first."""
        self._app.state.server.draining = True

    def end_all(self) -> None:
        """What comes when the drain time is over."""
        self._transport.call(lambda: cancel_all(self._app.state.server))


StartApp = Callable[..., App]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return load_tokenizer(resolve(MODEL))


@pytest.fixture
def slowly(tokenizer: Tokenizer) -> SlowTokenizer:
    return SlowTokenizer(tokenizer)


@pytest.fixture(scope="session")
def start_app(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartApp]:
    """Starts apps with options of their own, or parts: `folder`, `tokenizer`, `machine`."""
    started: list[App] = []

    def start(**options: Any) -> App:
        folder = options.pop("folder", None) or tmp_path_factory.mktemp("app")
        parts = {"folder": folder, "tokenizer": tokenizer, "machine": Machine()}
        started.append(App(**{**parts, **options}).start())
        return started[-1]

    yield start
    with ThreadPoolExecutor() as pool:
        list(pool.map(App.stop, started))


@pytest.fixture(scope="session")
def server(start_app: StartApp) -> App:
    """The app that most tests share."""
    return start_app()


@pytest.fixture(scope="session")
def client(server: App) -> openai.OpenAI:
    """The official client, connected to the shared app."""
    return server.openai


def _save_adapter(
    folder: Path, *, seed: int = 1, rank: int = 2, modules: Sequence[str] = ("q_proj",)
) -> Path:
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    tensors = {
        f"base_model.model.{name}.lora_{half}.weight": random.normal(size=shape).astype("float32")
        for name in LORA_TARGETS
        for half, shape in (("A", (rank, WIDTH)), ("B", (WIDTH, rank)))
        if name.endswith(tuple(modules))
    }
    save_file(tensors, folder / WEIGHTS_NAME)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": [*modules]}
    (folder / CONFIG_NAME).write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def save_adapter() -> Callable[..., Path]:
    """`(folder, seed=1, rank=2, modules=("q_proj",))`: an adapter of the fake model; the folder."""
    return _save_adapter


@pytest.fixture(scope="module")
def fake_training(
    tmp_path_factory: pytest.TempPathFactory, save_adapter: Callable[..., Path]
) -> Iterator[None]:
    """Jobs find another `finetune.job`, first on the path; the rest of finetune is the real one."""
    root = tmp_path_factory.mktemp("training")
    package = root / "finetune"
    save_adapter(package / trainer.ADAPTER)
    shutil.copy(trainer.__file__, package / "job.py")
    (package / "__init__.py").write_text(
        "from pkgutil import extend_path\n__path__ = extend_path(__path__, __name__)\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join((str(root), str(ROOT))))
        patch.setenv("PYTHONSAFEPATH", "1")
        yield
