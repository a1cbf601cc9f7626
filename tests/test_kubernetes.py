"""The manifests are what Kubernetes takes, by its schemas, and what no schema asks: restricted pods without secrets."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from uworker.settings import WorkerSettings

FOLDER = Path(__file__).parents[1] / "docker" / "kubernetes"
MANIFESTS = ["deployment", "job"]
# The newest that the schemas know, and what clusters have that nobody hurries to upgrade.
VERSIONS = ["1.30", "1.37"]
SETTINGS = {f"UWORKER_{name.upper()}" for name in WorkerSettings.model_fields}
SECRETS = {"UWORKER_JOB_API_TOKEN", "UWORKER_JOB_API_PASSWORD"}

Manifest = dict[str, Any]


def manifest(name: str) -> Manifest:
    [document] = yaml.safe_load_all((FOLDER / f"{name}.yaml").read_text())
    assert isinstance(document, dict)
    return document


def pod_of(document: Manifest) -> Manifest:
    pod: Manifest = document["spec"]["template"]["spec"]
    return pod


def container_of(document: Manifest) -> Manifest:
    container: Manifest
    [container] = pod_of(document)["containers"]
    return container


def breaches(document: Manifest) -> set[str]:
    """What the policy `restricted` of Kubernetes' Pod Security Standards would say of a pod with one container."""
    pod, container = pod_of(document), container_of(document)
    of_pod, of_container = pod.get("securityContext", {}), container.get("securityContext", {})
    both = {**of_pod, **of_container}
    capabilities = of_container.get("capabilities", {})
    kinds = {kind for volume in pod.get("volumes", []) for kind in volume if kind != "name"}
    allowed = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    found = {
        "host namespaces": any(pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")),
        "privileged": bool(of_container.get("privileged")),
        "capabilities": capabilities.get("drop") != ["ALL"] or bool(capabilities.get("add")),
        "host ports": any("hostPort" in port for port in container.get("ports", [])),
        "escalation": of_container.get("allowPrivilegeEscalation") is not False,
        "root": both.get("runAsNonRoot") is not True or both.get("runAsUser", 1) == 0,
        "seccomp": both.get("seccompProfile", {}).get("type") not in {"RuntimeDefault", "Localhost"},
        "volumes": not kinds <= allowed,
    }
    return {name for name, is_so in found.items() if is_so}


@pytest.mark.parametrize("name", MANIFESTS)
@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_the_manifests(name: str, version: str) -> None:
    kubernetes_validate.validate(manifest(name), version, strict=True)


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_with_a_slip_is_refused(name: str) -> None:
    slips: list[Callable[[Manifest], object]] = [
        lambda it: it["spec"].update(replica=3),
        lambda it: it["spec"].pop("template"),
        lambda it: pod_of(it).update(terminationGracePeriodSeconds="30s"),
        lambda it: pod_of(it)["volumes"][0]["emptyDir"].update(size="1Gi"),
        lambda it: container_of(it)["livenessProbe"].update(command=["uworker-alive"]),
    ]
    for slip in slips:
        broken = deepcopy(manifest(name))
        slip(broken)
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(broken, VERSIONS[0], strict=True)


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_namespace_for_restricted_pods_takes_them(name: str) -> None:
    assert breaches(manifest(name)) == set()
    loosened: dict[str, Callable[[Manifest], object]] = {
        "root": lambda it: pod_of(it)["securityContext"].pop("runAsNonRoot"),
        "seccomp": lambda it: pod_of(it)["securityContext"].pop("seccompProfile"),
        "escalation": lambda it: container_of(it)["securityContext"].pop("allowPrivilegeEscalation"),
        "capabilities": lambda it: container_of(it)["securityContext"].pop("capabilities"),
        "volumes": lambda it: pod_of(it)["volumes"].append({"name": "host", "hostPath": {"path": "/"}}),
        "host namespaces": lambda it: pod_of(it).update(hostNetwork=True),
    }
    for what, loosen in loosened.items():
        broken = deepcopy(manifest(name))
        loosen(broken)
        assert breaches(broken) == {what}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_pod_writes_to_bounded_folders_only(name: str) -> None:
    pod, container = pod_of(manifest(name)), container_of(manifest(name))
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert all("sizeLimit" in volume["emptyDir"] for volume in pod["volumes"])
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted == {"tmp": "/tmp", "run": "/run/uworker", "spool": "/var/lib/uworker"}
    assert {volume["name"] for volume in pod["volumes"]} == set(mounted)
    assert container["resources"]["limits"]["memory"]
    assert pod["terminationGracePeriodSeconds"] > 20


@pytest.mark.parametrize("name", MANIFESTS)
def test_settings_in_the_manifests_are_the_workers_and_secrets_come_from_a_secret(name: str) -> None:
    document = manifest(name)
    assert document["kind"] != "Secret"
    container = container_of(document)
    named = {variable["name"] for variable in container["env"]}
    assert named <= SETTINGS - SECRETS
    assert container["envFrom"] == [{"secretRef": {"name": "decimer-worker"}}]
    # What a Service of the namespace is called must not become a setting: the worker refuses unknown ones.
    assert pod_of(document)["enableServiceLinks"] is False


def test_the_job_ends_with_the_queue_and_the_deployment_does_not() -> None:
    assert container_of(manifest("job"))["args"] == ["--once"]
    assert "completions" not in manifest("job")["spec"]
    assert pod_of(manifest("job"))["restartPolicy"] == "Never"
    assert "args" not in container_of(manifest("deployment"))
    labels = manifest("deployment")["spec"]["template"]["metadata"]["labels"]
    assert manifest("deployment")["spec"]["selector"]["matchLabels"] == labels


def test_the_manifests_differ_in_what_they_must_alone() -> None:
    deployment, job = pod_of(manifest("deployment")), pod_of(manifest("job"))
    [of_deployment], [of_job] = deployment.pop("containers"), job.pop("containers")
    assert job.pop("restartPolicy") == "Never"
    assert deployment == job
    assert of_deployment.pop("readinessProbe")
    assert of_job.pop("args")
    assert of_deployment == of_job
