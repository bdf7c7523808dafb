"""The Pod Security Standard `restricted` as Kubernetes words it, control by control:
https://kubernetes.io/docs/concepts/security/pod-security-standards/ (baseline's controls included).
"""

from collections.abc import Iterator
from typing import Any

from tests.helm.chart import containers

VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim",
    "projected", "secret",
}  # fmt: skip
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")


def breaches(spec: dict[str, Any]) -> list[str]:
    """What a pod has that `restricted` forbids; none: it is admitted."""
    found = [*_of_pod(spec)]
    for one in containers(spec):
        found += [f"{one['name']}: {what}" for what in _of_container(one, spec)]
    return found


def _of_pod(spec: dict[str, Any]) -> Iterator[str]:
    yield from (f"{name} is set" for name in ("hostNetwork", "hostPID", "hostIPC") if name in spec)
    for volume in spec.get("volumes", []):
        kinds = set(volume) - {"name"}
        if not kinds <= VOLUMES:
            yield f"volume {volume['name']} is {kinds}"
    safety = spec.get("securityContext", {})
    for name in ("sysctls", "windowsOptions", "seLinuxOptions", "appArmorProfile"):
        if name in safety:
            yield f"{name} is set"


def _of_container(one: dict[str, Any], spec: dict[str, Any]) -> Iterator[str]:
    around, own = spec.get("securityContext", {}), one.get("securityContext", {})
    both = {**around, **own}
    if own.get("privileged") or own.get("procMount", "Default") != "Default":
        yield "privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    if both.get("runAsNonRoot") is not True or both.get("runAsUser") == 0:
        yield "may run as root"
    if both.get("seccompProfile", {}).get("type") not in {"RuntimeDefault", "Localhost"}:
        yield "no seccomp profile"
    powers = own.get("capabilities", {})
    if powers.get("drop") != ["ALL"] or not set(powers.get("add", [])) <= {"NET_BIND_SERVICE"}:
        yield "keeps capabilities"
    if any("hostPort" in port for port in one.get("ports", [])):
        yield "hostPort is set"
    handlers = [one.get(name, {}) for name in PROBES] + [*one.get("lifecycle", {}).values()]
    if any("host" in handler.get(kind, {}) for handler in handlers for kind in handler
           if isinstance(handler[kind], dict)):  # fmt: skip
        yield "a probe names a host"
