"""What tests of Kubernetes' manifests ask of a pod, and how Dagster writes the keys of YAML."""

import re
from typing import Any

ALLOWED_VOLUMES = {
    *(
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    )
}


def violations(pod: dict[str, Any]) -> list[str]:
    """What the profile `restricted` of Kubernetes' Pod Security Standards forbids in a pod's spec."""
    found = [name for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name)]
    found += [v["name"] for v in pod.get("volumes") or () if not (v.keys() - {"name"}) <= ALLOWED_VOLUMES]
    of_pod = pod.get("securityContext") or {}
    for container in [*(pod.get("initContainers") or ()), *pod["containers"]]:
        own, name = container.get("securityContext") or {}, container["name"]
        both = of_pod | own
        rights = own.get("capabilities") or {}
        checks = {
            "privileged": own.get("privileged"),
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is not False,
            "capabilities.drop": "ALL" not in (rights.get("drop") or ()),
            "capabilities.add": set(rights.get("add") or ()) - {"NET_BIND_SERVICE"},
            "runAsNonRoot": not both.get("runAsNonRoot"),
            "runAsUser": both.get("runAsUser") == 0,
            "seccompProfile": (both.get("seccompProfile") or {}).get("type")
            not in ("RuntimeDefault", "Localhost"),
            "hostPort": any(port.get("hostPort") for port in container.get("ports") or ()),
        }
        found += [f"{name}: {check}" for check, wrong in checks.items() if wrong]
    return found


def snake(value: Any) -> Any:
    """A value of YAML whose keys are written as Dagster writes them."""
    if isinstance(value, list):
        return [snake(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {re.sub(r"(?<=[a-z])([A-Z])", r"_\1", key).lower(): snake(one) for key, one in value.items()}
