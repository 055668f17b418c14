"The dashboard and the manifest of nbs/how_to/operations fit the command and a running server."

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from metavoice.cli import main
from metavoice.cli.commands import make_parser
from metavoice.core.settings import make_config
from metavoice.serve.config import ServerConfig

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "nbs" / "how_to" / "operations"
FUNCTIONS = {"sum", "rate", "histogram_quantile", "max"}
SCRAPED = {"job", "instance", "le"}  # labels that Prometheus or a histogram adds


@pytest.fixture(scope="module")
def objects():
    "The objects of the manifest, by kind."
    yaml = pytest.importorskip("yaml")
    found = list(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text(encoding="utf-8")))
    assert len({one["kind"] for one in found}) == len(found) == 5
    return {one["kind"]: one for one in found}


@pytest.fixture(scope="module")
def container(objects):
    (found,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    return found


def queries():
    board = json.loads((FOLDER / "grafana.json").read_text(encoding="utf-8"))
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]}) == len(board["panels"])
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]]


def names_and_labels(query):
    "Return the metrics of a query, and its labels."
    bare = query.replace("[$__rate_interval]", "")
    labels = set(re.findall(r"(\w+)=~?\"", bare))
    for group in re.findall(r"by \(([^)]*)\)", bare):
        labels |= {label.strip() for label in group.split(",")}
    bare = re.sub(r"by \([^)]*\)|\{[^}]*\}", "", bare)
    words = set(re.findall(r"[a-zA-Z_]\w*", bare))
    return words - FUNCTIONS, labels


def test_the_dashboard_asks_for_metrics_that_the_server_has(http):
    assert http.speak().status_code == 200
    lines = [line for line in http.get("/metrics").text.splitlines() if not line.startswith("#")]
    labels = {}
    for line in lines:
        name, _, given = re.match(r"(\w+)(\{(.*)\})? ", line).groups()
        labels.setdefault(name, set()).update(re.findall(r"(\w+)=\"", given or ""))
    assert len(queries()) > 10
    for query in queries():
        for opening, closing in ("()", "{}", "[]"):
            assert query.count(opening) == query.count(closing), query
        assert query.count('"') % 2 == 0 and "[$__rate_interval]" in query or "rate" not in query
        names, asked = names_and_labels(query)
        assert names and names <= set(labels), query
        for name in names:
            assert asked - SCRAPED <= labels[name], (query, name)
    shown = set().union(*(names_and_labels(query)[0] for query in queries()))
    for metric in {re.sub("_(total|bucket|sum|count|created)$", "", name) for name in labels if "metavoice" in name}:
        assert any(name.startswith(metric) for name in shown), f"the dashboard lacks {metric}"


def test_the_dashboards_queries_are_promql():
    parser = pytest.importorskip("promql_parser", reason="a parser of PromQL, which no other test needs")
    for query in queries():
        parser.parse(query.replace("$__rate_interval", "5m"))


def test_the_manifests_flags_and_variables_are_the_commands(container):
    command, *flags = container["args"]
    args = make_parser().parse_args([command, *flags])
    environ = {one["name"]: one["value"] for one in container["env"]}
    known = {f"METAVOICE_{field.name.upper()}" for field in fields(ServerConfig)}
    assert set(environ) <= known and environ["METAVOICE_HOST"] == "0.0.0.0"
    without = {name: value for name, value in environ.items() if name != "METAVOICE_API_KEYS_FILE"}
    config = make_config(ServerConfig, environ=without, flags=vars(args))
    (port,) = container["ports"]
    assert config.port == port["containerPort"] and config.threads == 1
    assert main([command, *flags, "--port", "70000"]) == 2
    assert environ["METAVOICE_API_KEYS_FILE"].startswith("/secrets/")


def test_the_manifest_drains_longer_than_the_server(objects, container):
    spec = objects["Deployment"]["spec"]["template"]["spec"]
    config = make_config(ServerConfig, flags=vars(make_parser().parse_args(container["args"])))
    command, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep" and int(seconds) + config.grace + 5 <= spec["terminationGracePeriodSeconds"]


def test_the_manifests_probes_need_no_key(serve, container):
    keys = ("a-key-of-16-letters",)
    with serve(api_keys=keys) as (_, http):
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            get = container[probe]["httpGet"]
            assert get["port"] == container["ports"][0]["name"]
            assert http.get(get["path"]).status_code == 200


def test_the_manifests_parts_fit_together(objects, container):
    template = objects["Deployment"]["spec"]["template"]
    labels, spec = template["metadata"]["labels"], template["spec"]
    for selector in (
        objects["Deployment"]["spec"]["selector"]["matchLabels"], objects["Service"]["spec"]["selector"],
        objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    assert {one["name"] for one in spec["volumes"]} == {one["name"] for one in container["volumeMounts"]}
    volumes = {one["name"]: one for one in spec["volumes"]}
    claim = volumes["voices"]["persistentVolumeClaim"]["claimName"]
    assert claim == objects["PersistentVolumeClaim"]["metadata"]["name"]
    assert objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == "metavoice"
    assert objects["Service"]["spec"]["ports"][0]["targetPort"] == container["ports"][0]["name"]
    assert "replicas" not in objects["Deployment"]["spec"], "the autoscaler sets it"
    annotations = template["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(container["ports"][0]["containerPort"])


def test_the_manifest_is_locked_down_and_fits_the_image(objects, container):
    pod, own = objects["Deployment"]["spec"]["template"]["spec"]["securityContext"], container["securityContext"]
    image = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert f"--uid {pod['runAsUser']} " in image and pod["runAsNonRoot"] is True
    assert own["readOnlyRootFilesystem"] is True and own["allowPrivilegeEscalation"] is False
    assert own["capabilities"] == {"drop": ["ALL"]}
    mounts = {one["mountPath"] for one in container["volumeMounts"]}
    assert {"/tmp", "/home/metavoice", "/cache", "/voices"} <= mounts
    assert "METAVOICE_CACHE=/cache/metavoice" in image and "METAVOICE_VOICES=/voices" in image
