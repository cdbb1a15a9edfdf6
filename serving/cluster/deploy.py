"""Starts replicas on Ray Serve and serves them from this process until a signal comes.

Contract: without an address Ray runs for this command alone and ends with it; on a cluster one
application is added, and taken away again however the command ends but by a kill. The ledger is
written on this machine.
Stopping is as with one server: running requests get their time, then all books are closed.

Not covered: several fronts; the front's own joules and Ray's, which are on no bill.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.config import (
    AutoscalingConfig,
    AutoscalingPolicy,
    ProxyLocation,
    RequestRouterConfig,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from greenllm.energy.carbon.policy import carbon_policy
from greenllm.engine.drafting import check_draft_model
from greenllm.model.files import check_folder
from greenllm.model.options import resolve
from serving.cluster.front import FrontLimits, create_front, drain, end_all
from serving.cluster.keeper import Keeper
from serving.cluster.ray_pool import RayPool, is_alive
from serving.cluster.replica import Post, Replica, forget
from serving.cluster.router import PackingRouter
from serving.cluster.scaling import Scaling
from serving.config import ABORT_TIMEOUT_S, ServeConfig
from serving.front_door import FrontDoor, StartError, check_tls, take_port
from serving.keys.access import ring_of
from serving.request_log import request_log

log = logging.getLogger(__name__)
_STATS_EVERY_S = 2.0
_CONNECT_TIMEOUT_S = 5.0
# What replicas need from the environment that Ray does not hand on by itself.
_HANDED_ON = (
    "OMP_WAIT_POLICY",
    "TRANSFORMERS_VERBOSITY",
    "HF_HUB_OFFLINE",
    "HF_HOME",
    "PYTHONPATH",
)
OnReady = Callable[[ServeConfig, Sequence[Mapping[str, Any]], int], None]


class Cluster:
    """Ray, for as long as the command runs; `name` is the application's."""

    def __init__(self, config: ServeConfig, run: str) -> None:
        self.run, self.name = run, f"greenllm-{run}"
        _require_answer(config.cluster)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ray's workers would give way to any other program, and replicas are the server.
        os.environ.setdefault("RAY_worker_niceness", "0")
        own: dict[str, Any] = {
            "num_cpus": (config.replicas or 1) * config.cpus_per_replica,
            "include_dashboard": False,
            "object_store_memory": 100_000_000,
        }
        try:
            ray.init(
                address=config.cluster or "local",
                namespace="greenllm",
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
                **(own if config.cluster is None else {}),
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            where = config.cluster or "a cluster of its own"
            raise StartError(f"--cluster: cannot use {where}: {error}") from error

    def device(self, config: ServeConfig) -> str:
        """What replicas run on: a GPU each, where the cluster has some.

        Raises:
            StartError: fewer CPUs or GPUs are there than the fewest replicas need.
        """
        found = ray.cluster_resources()
        device = config.device
        if device == "auto":
            device = "cuda" if found.get("GPU", 0) > 0 else "cpu"
        least = config.min_replicas or config.replicas or 1
        needs: dict[str, int] = {
            "CPU": least * config.cpus_per_replica,
            "GPU": least * config.tensor_parallel if device == "cuda" else 0,
        }
        for name, needed in needs.items():
            if found.get(name, 0) < needed:
                other = ", for --device cpu" if name == "GPU" else ""
                raise StartError(
                    f"--replicas: {least} replicas need {needed} {name}s, and the cluster has"
                    f" {found.get(name, 0):g}; ask for fewer{other}, or add nodes"
                )
        self._tell_of_waiting(needs)
        return device

    def _tell_of_waiting(self, needs: Mapping[str, int]) -> None:
        free = ray.available_resources()
        for name, needed in needs.items():
            if free.get(name, 0) < needed:
                log.warning(
                    "waiting for %d %ss, of which %g are free: others use the cluster"
                    " (`ray status`)",
                    needed,
                    name,
                    free.get(name, 0),
                )

    def close(self) -> None:
        """Have the replicas finish and close their books, if they have been started."""
        try:
            serve.delete(self.name)
        except Exception as error:  # Ray's own may be gone; what was started ends with it
            log.warning("cannot take %s away: %s", self.name, error)

    def end(self) -> None:
        """Let go of Ray; a cluster of its own ends with it."""
        ray.shutdown()
        forget(self.run)


def _require_answer(address: str | None) -> None:
    """Ray tries an address for minutes; whether somebody is there shows at once."""
    host, _, port = (address or "").rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), _CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise StartError(f"--cluster: nobody answers at {address}: {error}") from error


def make_keeper(config: ServeConfig, run: str) -> Any:
    """The ledger's keeper, an actor on this machine."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    made = ray.remote(Keeper).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here)
    keeper = made.remote(config.ledger_path, run, is_alive)
    ray.get(keeper.totals.remote())  # a ledger that cannot be used is told now
    return keeper


def application(config: ServeConfig, keeper: Any, run: str) -> Any:
    """What Ray Serve is to run."""
    post = Post(config, keeper, run, config.cpus_per_replica)
    environment = {name: os.environ[name] for name in _HANDED_ON if name in os.environ}
    needs = {
        "num_cpus": config.cpus_per_replica,
        "num_gpus": config.tensor_parallel if config.device == "cuda" else 0,
        "runtime_env": {"env_vars": environment},
    }
    deployed = serve.deployment(Replica).options(
        ray_actor_options=needs,
        max_ongoing_requests=2 * config.max_queue,
        graceful_shutdown_timeout_s=config.drain_timeout_s + ABORT_TIMEOUT_S,
        health_check_period_s=_STATS_EVERY_S,
        request_router_config=RequestRouterConfig(
            request_router_class=PackingRouter,
            request_router_kwargs={"full_at": config.max_num_seqs},
            request_routing_stats_period_s=_STATS_EVERY_S,
        ),
        **_scale(config),
    )
    return deployed.bind(post)


def _scale(config: ServeConfig) -> dict[str, Any]:
    most, least = config.replicas or 1, config.min_replicas
    if least is None or least == most:
        return {"num_replicas": most}
    policy = AutoscalingPolicy(
        policy_function=Scaling, policy_kwargs={"full_at": float(config.max_num_seqs)}
    )
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=least,
            max_replicas=most,
            initial_replicas=least,
            policy=policy,
            metrics_interval_s=_STATS_EVERY_S,
            look_back_period_s=2 * _STATS_EVERY_S,
            upscale_delay_s=0.0,
            downscale_delay_s=0.0,
        )
    }


def run(config: ServeConfig, on_ready: OnReady) -> None:
    """Serve replicas until a signal comes; `on_ready` is told when requests are taken.

    Raises:
        GreenllmError: they cannot start.
    """
    check_tls(config)
    listener = take_port(config.host, config.port)
    run_id = f"s-{int(time.time()):x}-{secrets.token_hex(3)}"
    try:
        _look_before(config)
        cluster = Cluster(config, run_id)
        # Ray ends the process at once on SIGTERM, also while replicas are being started.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            config = _absolute(replace(config, device=cluster.device(config)))
            keeper = make_keeper(config, run_id)
            try:
                handle = _started(config, keeper, run_id, cluster.name)
                _serve(config, listener, RayPool(handle, keeper), on_ready)
            finally:
                cluster.close()
                ray.get(keeper.close.remote())
        finally:
            cluster.end()
    finally:
        listener.close()


def _look_before(config: ServeConfig) -> None:
    """What one server would refuse at once need not wait for Ray."""
    carbon_policy(config)
    check_folder(resolve(config.model), allow_pickle=config.allow_pickle)
    check_draft_model(config)


def _absolute(config: ServeConfig) -> ServeConfig:
    """Paths as they are here: replicas run in other folders."""

    def found(source: str | None) -> str | None:
        is_here = source is not None and Path(source).is_dir()
        return str(Path(source).absolute()) if source is not None and is_here else source

    meter = config.meter
    if meter.startswith("replay:"):
        meter = f"replay:{Path(meter.removeprefix('replay:')).absolute()}"
    return replace(
        config,
        model=found(config.model) or config.model,
        draft_model=found(config.draft_model),
        adapter_dirs=tuple(folder.absolute() for folder in config.adapter_dirs),
        cache_dir=config.cache_path.absolute(),
        data_dir=config.data_path.absolute(),
        keys_file=None if config.keys_path is None else config.keys_path.absolute(),
        meter=meter,
    )


def _started(config: ServeConfig, keeper: Any, run_id: str, name: str) -> Any:
    serve.start(proxy_location=ProxyLocation.Disabled)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        return serve.run(application(config, keeper, run_id), name=name, route_prefix=None)
    except RuntimeError as error:
        raise StartError(_reason(name)) from error


def _reason(name: str) -> str:
    """Why an application did not start, as Ray Serve knows it."""
    status = serve.status().applications.get(name)
    told = [] if status is None else [d.message for d in status.deployments.values()]
    last = " ".join(told).strip().splitlines()
    return f"the replicas did not start: {last[-1] if last else 'see the logs of Ray Serve'}"


def _serve(config: ServeConfig, listener: Any, pool: RayPool, on_ready: OnReady) -> None:
    found = asyncio.run(pool.describe())
    base = frozenset(name for one in found for name in one["names"])
    limits = FrontLimits((config.replicas or 1) * config.max_queue, base)
    with request_log(config) as log:
        app = create_front(lambda: pool, config, limits, ring_of(config), log)
        door = FrontDoor(
            app,
            config,
            on_ready=lambda: on_ready(config, found, listener.getsockname()[1]),
            on_signal=lambda: drain(app),
            on_drained=lambda: end_all(app),
        )
        door.run(sockets=[listener])
