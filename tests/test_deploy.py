"""The image's recipe and the manifests name what exists, and keep their promises.

No container engine is asked. Not covered: whether an image builds, and whether Kubernetes,
Compose, Prometheus and Grafana take every word. That what is in the image serves is shown in
`tests/service/test_image.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from greenllm.config import ENVIRONMENT_PREFIX, load
from greenllm.energy.carbon.grid import IntensityTable
from serving.config import ServeConfig
from tests import dockerfile

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
ENVIRONMENT = dockerfile.environment()
OPTIONS = {ENVIRONMENT_PREFIX + spec.name.upper() for spec in fields(ServeConfig)}
UID = 10001
LONGEST_STOP_S = ServeConfig().longest_stop_s
ROUTES = (ROOT / "tests/api/golden/routes.txt").read_text(encoding="utf-8").splitlines()
HISTOGRAM = ("_bucket", "_sum", "_count")


def documents(name: str) -> list[Any]:
    """What a file of manifests holds."""
    return list(yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")))


def manifest(kind: str) -> Any:
    """The one Kubernetes object of a kind."""
    (found,) = (thing for thing in documents("kubernetes.yaml") if thing["kind"] == kind)
    return found


def metric_rows() -> dict[str, tuple[str, set[str]]]:
    """Type and labels of every sample's name, by the reference that is written from the code."""
    text = (ROOT / "docs/reference/metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([\w, ]*) \|", text, re.MULTILINE)
    found = {}
    for name, kind, labels in rows:
        for suffix in HISTOGRAM if kind == "histogram" else ("",):
            more = {"le"} if suffix == "_bucket" else set()
            found[name + suffix] = (kind, {*labels.replace(" ", "").split(","), *more} - {""})
    return found


METRICS = metric_rows()
POD = manifest("Deployment")["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]
COMPOSE = documents("compose.yaml")[0]["services"]
DASHBOARD = json.loads((DEPLOY / "grafana/greenllm.json").read_text(encoding="utf-8"))
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def test_what_is_copied_is_there_and_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {"greenllm", "serving", "finetune", "evals", "pyproject.toml"} <= dockerfile.copied()
    for source in dockerfile.copied():
        assert (ROOT / source).exists(), source
        assert source.partition("/")[0] not in ignored, source


def test_the_server_is_not_root_and_a_number_says_so() -> None:
    assert dockerfile.last("USER") == f"{UID}:{UID}"
    assert f"chown {UID}:{UID} /data" in dockerfile.last("RUN")


def test_the_images_variables_are_options_with_values_that_are_taken() -> None:
    assert {name for name in ENVIRONMENT if name.startswith(ENVIRONMENT_PREFIX)} <= OPTIONS
    config = load(ServeConfig, flags={}, environment=ENVIRONMENT)
    assert (config.host, config.port) == ("0.0.0.0", int(dockerfile.last("EXPOSE")))


def test_everything_that_is_written_lies_below_data_or_tmp() -> None:
    folders = ("HOME", "XDG_CACHE_HOME", "HF_HOME", "MPLCONFIGDIR")
    for name in (*folders, "GREENLLM_DATA_DIR", "GREENLLM_CACHE_DIR"):
        assert ENVIRONMENT[name].split("/")[1] in ("data", "tmp"), name
    assert dockerfile.last("VOLUME") == dockerfile.last("WORKDIR") == "/data"
    assert ENVIRONMENT["PYTHONDONTWRITEBYTECODE"] == "1"


def test_the_health_check_asks_an_existing_route() -> None:
    (route,) = re.findall(r"GET (/\w+) ", dockerfile.last("HEALTHCHECK"))
    assert f"GET {route}" in ROUTES


def test_compose_keeps_the_server_read_only_and_waits_for_it() -> None:
    server = COMPOSE["greenllm"]
    assert server["read_only"] is True
    assert server["init"] is True
    assert server["tmpfs"] == ["/tmp"]
    assert server["volumes"] == ["data:/data"]
    assert int(server["stop_grace_period"].removesuffix("s")) >= LONGEST_STOP_S
    for service in COMPOSE.values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_compose_sets_options_that_exist() -> None:
    given = COMPOSE["greenllm"]["environment"]
    assert set(given) <= OPTIONS
    # What has no value is taken from the shell, where it is set there.
    values = {name: text for name, text in given.items() if text is not None}
    plain = {name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", text) for name, text in values.items()}
    assert load(ServeConfig, flags={}, environment=plain) == ServeConfig()


def test_compose_mounts_files_that_exist_where_they_are_looked_for() -> None:
    places = {}
    for service in COMPOSE.values():
        for volume in service["volumes"]:
            source, target, *_ = volume.split(":")
            if source.startswith("."):
                assert (DEPLOY / source).is_file(), source
                places[target] = source
    (provider,) = documents("grafana/dashboards.yaml")[0]["providers"]
    assert places[f"{provider['options']['path']}/greenllm.json"] == "./grafana/greenllm.json"
    home = COMPOSE["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home in places


def test_prometheus_asks_the_server_of_compose_and_grafana_prometheus() -> None:
    (job,) = documents("prometheus.yml")[0]["scrape_configs"]
    assert f"GET {job['metrics_path']}" in ROUTES
    (target,) = job["static_configs"][0]["targets"]
    assert target == f"greenllm:{ENVIRONMENT['GREENLLM_PORT']}"
    (source,) = documents("grafana/datasource.yaml")[0]["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert {"greenllm", "prometheus"} <= set(COMPOSE)


def test_kubernetes_probes_ask_existing_routes_on_the_port() -> None:
    (port,) = CONTAINER["ports"]
    assert port["containerPort"] == int(ENVIRONMENT["GREENLLM_PORT"])
    paths = {}
    for name in ("startup", "readiness", "liveness"):
        asked = CONTAINER[f"{name}Probe"]["httpGet"]
        assert f"GET {asked['path']}" in ROUTES
        assert asked["port"] == port["name"]
        paths[name] = asked["path"]
    assert paths == {"startup": "/ready", "readiness": "/ready", "liveness": "/health"}
    notes = POD["metadata"]["annotations"]
    assert f"GET {notes['prometheus.io/path']}" in ROUTES
    assert notes["prometheus.io/port"] == str(port["containerPort"])
    (service,) = manifest("Service")["spec"]["ports"]
    assert service["targetPort"] == port["name"]


def test_kubernetes_waits_as_long_as_a_stop_can_take() -> None:
    before_s = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert POD["spec"]["terminationGracePeriodSeconds"] >= before_s + LONGEST_STOP_S


def test_kubernetes_runs_the_image_user_without_privileges_on_a_read_only_root() -> None:
    pod, container = POD["spec"]["securityContext"], CONTAINER["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert pod["runAsUser"] == pod["runAsGroup"] == pod["fsGroup"] == UID
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounts = {mount["mountPath"]: mount["name"] for mount in CONTAINER["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in POD["spec"]["volumes"]}
    claim = volumes[mounts["/data"]]["persistentVolumeClaim"]["claimName"]
    assert claim == manifest("PersistentVolumeClaim")["metadata"]["name"]
    assert volumes[mounts["/tmp"]] == {"name": "tmp", "emptyDir": {}}


def test_kubernetes_sets_options_that_exist_and_no_others_come_in() -> None:
    given = {item["name"]: item.get("value") for item in CONTAINER["env"]}
    assert set(given) <= OPTIONS
    plain = {name: text for name, text in given.items() if text is not None}
    assert load(ServeConfig, flags={}, environment=plain) == ServeConfig()
    # A Service of this name puts GREENLLM_PORT=tcp://... into pods that do not refuse it.
    assert POD["spec"]["enableServiceLinks"] is False


def test_kubernetes_labels_fit_together() -> None:
    labels = POD["metadata"]["labels"]
    assert manifest("Deployment")["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert manifest("Service")["spec"]["selector"].items() <= labels.items()


def problems(expression: str) -> Iterator[str]:
    """What a PromQL expression asks for that `/metrics` does not have."""
    labels = {"instance"}
    for name in re.findall(r"greenllm_\w+", expression):
        if name not in METRICS:
            yield f"no metric {name}"
            continue
        kind, own = METRICS[name]
        labels |= own
        is_rate = re.search(rf"(rate|increase)\({name}\{{", expression) is not None
        if is_rate != (kind != "gauge"):
            yield f"{name} is a {kind}"
    for group in re.findall(r"by \(([^)]*)\)", expression):
        yield from (f"no label {name}" for name in group.split(", ") if name not in labels)
    for name in re.findall(r'(\w+)=~?"', expression):
        if name not in labels:
            yield f"no label {name}"


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_the_dashboard_asks_for_what_there_is(expression: str) -> None:
    assert list(problems(expression)) == []
    assert expression.count("(") == expression.count(")")


@pytest.mark.parametrize(
    "expression",
    [
        "sum(greenllm_frobs)",
        "sum(greenllm_steps_total)",
        "rate(greenllm_kv_blocks{}[5m])",
        "sum by (frob) (greenllm_kv_blocks)",
        'greenllm_kv_blocks{frob="x"}',
        "rate(greenllm_request_energy_joules{}[5m])",
    ],
)
def test_what_there_is_not_is_found(expression: str) -> None:
    assert len(list(problems(expression))) == 1


def test_the_grams_start_from_the_intensity_that_greenllm_starts_from() -> None:
    variables = {item["name"]: item for item in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$(\w+)", "\n".join(EXPRESSIONS)))
    assert used - {"__rate_interval", "__range"} == set(variables)
    world = IntensityTable.load().lookup(ServeConfig().zone)
    assert float(variables["intensity"]["query"]) == world.g_per_kwh
    assert float(variables["pue"]["query"]) == ServeConfig().pue
