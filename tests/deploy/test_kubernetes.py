"""The Kubernetes manifests: rendered, valid for a current cluster, and fitting each other and the image."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from deploy.kubernetes.__main__ import RESOURCE, resource
from server.settings import read_settings
from tests.support.dockerfile import REPOSITORY, stages
from tests.support.operator_schemas import SCHEMAS

KUBERNETES = REPOSITORY / "deploy" / "kubernetes"
OVERLAYS = ("base", "gpu")
LABELS = {"app.kubernetes.io/name": "tutti"}

Resource = dict[str, Any]


def tool() -> list[str] | None:
    """A kustomize of version 4 or later, by itself or in kubectl."""
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    if shutil.which("kubectl"):
        answer = subprocess.run(["kubectl", "version", "--client"], capture_output=True, text=True, check=False)
        if re.search(r"Kustomize Version: v([4-9]|\d\d)", answer.stdout):
            return ["kubectl", "kustomize"]
    return None


@pytest.fixture(scope="module", params=OVERLAYS)
def rendered(request: pytest.FixtureRequest) -> list[Resource]:
    """All resources of an overlay that serves."""
    return built(request.param)


def built(overlay: str) -> list[Resource]:
    """All resources of an overlay."""
    if (command := tool()) is None:
        pytest.skip("neither kustomize nor a current kubectl is installed")
    folder = KUBERNETES / overlay
    result = subprocess.run([*command, folder], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    return list(yaml.safe_load_all(result.stdout))


def one(resources: list[Resource], kind: str) -> Resource:
    (found,) = [resource for resource in resources if resource["kind"] == kind]
    return found


def container(resources: list[Resource]) -> Resource:
    (found,) = one(resources, "Deployment")["spec"]["template"]["spec"]["containers"]
    return dict(found)


@pytest.mark.parametrize("overlay", [*OVERLAYS, "monitored"])
def test_a_current_cluster_takes_them(overlay: str) -> None:
    latest = kubernetes_validate.latest_version()
    for found in built(overlay):
        if found["kind"] in SCHEMAS:
            jsonschema.validate(found, SCHEMAS[found["kind"]])
        else:
            kubernetes_validate.validate(found, latest, strict=True)


def test_a_mistake_would_be_found(rendered: list[Resource]) -> None:
    deployment = one(rendered, "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        kubernetes_validate.validate(deployment, kubernetes_validate.latest_version(), strict=True)
    del deployment["spec"]["template"]["spec"]["containers"][0]["readynessProbe"]


def test_selectors_find_the_pods(rendered: list[Resource]) -> None:
    deployment = one(rendered, "Deployment")
    assert deployment["spec"]["template"]["metadata"]["labels"] == LABELS
    assert deployment["spec"]["selector"]["matchLabels"] == LABELS
    assert one(rendered, "Service")["spec"]["selector"] == LABELS
    assert one(rendered, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == LABELS
    assert one(rendered, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == LABELS


def test_every_pod_is_confined(rendered: list[Resource]) -> None:
    pod = one(rendered, "Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" == (
        stages()["image"].last("USER")
    )
    confined = container(rendered)["securityContext"]
    assert confined["readOnlyRootFilesystem"] is True
    assert confined["allowPrivilegeEscalation"] is False
    assert confined["capabilities"]["drop"] == ["ALL"]
    assert pod["automountServiceAccountToken"] is False


def test_what_the_image_writes_lies_on_volumes(rendered: list[Resource]) -> None:
    mounted = [mount["mountPath"] for mount in container(rendered)["volumeMounts"]]
    environment = stages()["image"].variables("ENV")
    for variable in ("HOME", "HF_HOME", "TUTTI_SERVER__CACHE_DIR"):
        assert any(environment[variable].startswith(folder) for folder in mounted)
    assert "/tmp" in mounted


def test_probes_ask_what_the_server_answers(rendered: list[Resource]) -> None:
    found = container(rendered)
    probes = {name: found[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
    # A member that is down takes the pod out of the service; it does not restart the others.
    assert probes == {"startup": "/health", "liveness": "/health", "readiness": "/ready"}
    assert {port["name"]: port["containerPort"] for port in found["ports"]} == {"http": 8000}


def test_what_runs_may_finish(rendered: list[Resource]) -> None:
    pod = one(rendered, "Deployment")["spec"]["template"]["spec"]
    before = int(container(rendered)["lifecycle"]["preStop"]["exec"]["command"][-1])
    for config in ("demo.yaml", "gpu/ensemble.yaml"):
        grace = read_settings(REPOSITORY / "deploy" / config).server.shutdown_seconds
        assert pod["terminationGracePeriodSeconds"] >= before + grace + 10


def test_images_are_those_of_compose(rendered: list[Resource]) -> None:
    services = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())["services"]
    built = {service["image"] for service in services.values() if "build" in service}
    assert container(rendered)["image"] in built


def test_a_gpu_for_every_model() -> None:
    patch = yaml.safe_load((KUBERNETES / "gpu" / "deployment.yaml").read_text())
    limits = patch["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    models = read_settings(REPOSITORY / "deploy/gpu/ensemble.yaml").models
    assert int(limits["nvidia.com/gpu"]) == len({model.device for model in models.values()}) == len(models)


def test_monitoring_is_applied_beside_what_serves() -> None:
    """With the base in it, it would put the demo in the place of other models."""
    resources = yaml.safe_load((KUBERNETES / "monitored" / "kustomization.yaml").read_text())["resources"]
    assert not any(resource.removeprefix("../") in OVERLAYS for resource in resources)


def test_the_monitor_finds_the_service() -> None:
    monitor = yaml.safe_load((KUBERNETES / "monitored" / "servicemonitor.yaml").read_text())["spec"]
    service = yaml.safe_load((KUBERNETES / "base" / "service.yaml").read_text())
    assert monitor["selector"]["matchLabels"] == service["metadata"]["labels"]
    assert monitor["endpoints"][0]["port"] in [port["name"] for port in service["spec"]["ports"]]


def test_the_alerts_are_those_of_prometheus() -> None:
    """`python -m deploy.kubernetes` writes them anew."""
    assert RESOURCE.read_text() == resource()
    alerts = yaml.safe_load((REPOSITORY / "deploy/prometheus/alerts.yaml").read_text())
    assert yaml.safe_load(resource())["spec"] == alerts
