"""The image's recipe and the manifests name what exists, and keep their promises.

No container engine is asked: a Dockerfile is read by `tests.dockerfile`, manifests as YAML and
JSON. Not covered: whether an image builds, and whether Kubernetes, Compose, Prometheus and
Grafana take every word. What the build steps do is tried in `tests/service/test_image.py`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from greenllm.config import ENVIRONMENT_PREFIX, load
from greenllm.energy.carbon.grid import IntensityTable
from serving.config import ServeConfig
from tests.dockerfile import Ignored, Stage, Step, read

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
ARGUMENTS, STAGES = read((ROOT / "Dockerfile").read_text(encoding="utf-8"))
FINAL = STAGES[-1]
ENVIRONMENT = FINAL.environment({"PATH": "/usr/bin"})
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


def test_stages_rest_on_the_base_or_on_each_other() -> None:
    assert ARGUMENTS == {"BASE": "python:3.11-slim"}
    assert [(stage.base, stage.name) for stage in STAGES] == [
        ("python:3.11-slim", "packages"),
        ("packages", "build"),
        ("python:3.11-slim", ""),
    ]


def test_what_is_copied_is_there_and_not_ignored() -> None:
    ignored = Ignored((ROOT / ".dockerignore").read_text(encoding="utf-8"))
    for stage in STAGES:
        for step in stage.all("COPY"):
            if "from" in step.flags:
                assert step.flags["from"] in {other.name for other in STAGES}
                continue
            for source in step.words[:-1]:
                assert (ROOT / source).exists(), source
                assert not ignored(PurePosixPath(source)), source


def test_tests_and_secrets_of_the_folder_stay_out() -> None:
    ignored = Ignored((ROOT / ".dockerignore").read_text(encoding="utf-8"))
    for path in (".git/config", ".venv/bin/python", "tests/conftest.py", "ledger.sqlite-wal"):
        assert ignored(PurePosixPath(path)), path
    assert ignored(PurePosixPath("greenllm/cli/__pycache__/app.cpython-311.pyc"))
    assert not ignored(PurePosixPath("greenllm/energy/data/intensity.csv"))


def test_packages_are_pinned_and_torch_is_the_cpu_build_unless_told() -> None:
    packages, build, _ = STAGES
    (index,) = packages.all("ARG")
    assert index.rest == "TORCH_INDEX=https://download.pytorch.org/whl/cpu"
    installs = [step.rest for stage in (packages, build) for step in stage.all("RUN")]
    assert sum("pip install" in command for command in installs) == 3
    for command in installs:
        for call in re.findall(r"pip install.*", command):
            assert "--constraint constraints.txt" in call or "--no-deps --no-index" in call


def test_the_server_is_not_root_and_a_number_says_so() -> None:
    assert FINAL.last("USER").words == [f"{UID}:{UID}"]
    assert f"chown {UID}:{UID} /data" in FINAL.all("RUN")[0].rest
    words = [step.word for step in FINAL.steps]
    assert "RUN" not in words[words.index("USER") :]


def test_variables_are_options_with_values_that_are_taken() -> None:
    ours = {name: text for name, text in ENVIRONMENT.items() if name.startswith("GREENLLM_")}
    assert set(ours) <= OPTIONS
    config = load(ServeConfig, flags={}, environment=ENVIRONMENT)
    assert (config.host, config.port) == ("0.0.0.0", 8000)
    assert FINAL.last("EXPOSE").words == ["8000"]


def test_everything_that_is_written_lies_below_data_or_tmp() -> None:
    folders = ("HOME", "XDG_CACHE_HOME", "HF_HOME", "MPLCONFIGDIR")
    for name in (*folders, "GREENLLM_DATA_DIR", "GREENLLM_CACHE_DIR"):
        assert ENVIRONMENT[name].split("/")[1] in ("data", "tmp"), name
    assert FINAL.last("VOLUME").words == FINAL.last("WORKDIR").words == ["/data"]
    assert ENVIRONMENT["PYTHONDONTWRITEBYTECODE"] == "1"


def test_the_image_starts_the_server_and_ends_it_by_a_signal() -> None:
    assert FINAL.last("ENTRYPOINT").words + FINAL.last("CMD").words == ["greenllm", "serve"]
    assert FINAL.last("STOPSIGNAL").rest == "SIGTERM"
    scripts = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'greenllm = "greenllm.__main__:main"' in scripts


def test_the_health_check_asks_an_existing_route() -> None:
    check = FINAL.last("HEALTHCHECK")
    assert set(check.flags) == {"interval", "timeout", "start-period", "retries"}
    code = Step("CMD", {}, check.rest.removeprefix("CMD ")).words[-1]
    (route,) = re.findall(r"GET (/\w+) ", code)
    assert f"GET {route}" in ROUTES
    nobody = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code],
        env={**os.environ, "GREENLLM_PORT": "1"},
        capture_output=True,
        check=False,
    )
    assert nobody.returncode == 1


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
    plain = {name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", text) for name, text in given.items()}
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


@pytest.mark.parametrize("name", ["compose.cuda.yaml", "compose.rapl.yaml"])
def test_what_goes_on_top_changes_a_service_that_exists(name: str) -> None:
    (top,) = documents(name)
    assert set(top["services"]) <= set(COMPOSE)


def test_the_cuda_image_takes_an_argument_that_exists() -> None:
    (top,) = documents("compose.cuda.yaml")
    arguments = top["services"]["greenllm"]["build"]["args"]
    known = {step.rest.partition("=")[0] for stage in STAGES for step in stage.all("ARG")}
    assert set(arguments) <= known | set(ARGUMENTS)


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


def test_kubernetes_holds_with_its_sensors_too() -> None:
    """What is commented out for RAPL and NVML is YAML that fits once it is let in."""
    text = (DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8")
    starts = ("supplementalGroups", "runtimeClassName", "nodeSelector", "nvidia", "- {name: rapl")
    words = "|".join(map(re.escape, (*starts, "- name: rapl", "  hostPath")))
    text = re.sub(rf"^( *)# ((?:{words}).*)$", r"\1\2", text, flags=re.MULTILINE)
    (pod,) = (
        thing["spec"]["template"]["spec"]
        for thing in yaml.safe_load_all(text)
        if thing["kind"] == "Deployment"
    )
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert pod["runtimeClassName"] == "nvidia"
    assert pod["securityContext"]["supplementalGroups"] == [998]
    rapl = next(volume for volume in pod["volumes"] if volume["name"] == "rapl")
    mount = next(mount for mount in container["volumeMounts"] if mount["name"] == "rapl")
    (top,) = documents("compose.rapl.yaml")
    (bind,) = top["services"]["greenllm"]["volumes"]
    assert (rapl["hostPath"]["path"], mount["mountPath"]) == (bind["source"], bind["target"])
    assert mount["readOnly"] is bind["read_only"] is True


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


def test_the_dashboard_shows_what_users_ask() -> None:
    asked = (
        *("meter_joules", "account_joules", "completion_tokens", "request_duration", "drafted"),
        *("requests_waiting", "conservation_violations", "accepted_tokens", "request_energy"),
    )
    text = "\n".join(EXPRESSIONS)
    assert [name for name in asked if f"greenllm_{name}" not in text] == []


def test_the_grams_start_from_the_intensity_that_greenllm_starts_from() -> None:
    variables = {item["name"]: item for item in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$(\w+)", "\n".join(EXPRESSIONS)))
    assert used - {"__rate_interval", "__range"} == set(variables)
    world = IntensityTable.load().lookup(ServeConfig().zone)
    assert float(variables["intensity"]["query"]) == world.g_per_kwh
    assert float(variables["pue"]["query"]) == ServeConfig().pue


def test_panels_have_numbers_of_their_own_a_source_and_a_place() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    (source,) = documents("grafana/datasource.yaml")[0]["datasources"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["datasource"] == {"type": "prometheus", "uid": source["uid"]}
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (place["x"] + right, place["y"] + down)
            for right in range(place["w"])
            for down in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_a_dockerfile_is_read_as_docker_reads_it() -> None:
    text = '# a\nARG B=x:1\nFROM ${B} AS one\nRUN a \\\n # in between\n && b\nFROM one\nCMD ["c"]\n'
    arguments, (one, two) = read(text)
    assert arguments == {"B": "x:1"}
    assert (one.base, one.name) == ("x:1", "one")
    assert one.all("RUN")[0].rest.split() == ["a", "&&", "b"]
    assert two == Stage("one", "", [Step("CMD", {}, '["c"]')])
    with pytest.raises(ValueError, match="ADD"):
        read("FROM x\nADD a b\n")


@pytest.mark.parametrize(
    ("pattern", "path", "is_ignored"),
    [
        ("tests", "tests/unit/test_core.py", True),
        ("tests", "greenllm/tests/a.py", False),
        ("**/__pycache__", "greenllm/cli/__pycache__/a.pyc", True),
        ("**/__pycache__", "__pycache__/a.pyc", True),
        ("*.md\n!README.md", "README.md", False),
        ("*.md\n!README.md", "NOTES.md", True),
        ("*.md", "docs/energy.md", False),
        ("# tests\n\n.*_cache/", ".mypy_cache/x/y", True),
    ],
)
def test_dockerignore_leaves_out_what_docker_would(
    pattern: str, path: str, is_ignored: bool
) -> None:
    assert Ignored(pattern)(PurePosixPath(path)) is is_ignored
