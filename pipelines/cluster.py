"""Where steps run, and what each asks of a node: chosen by the environment of the code location.

CLIPGEN_EXECUTOR: unset or `processes` (one process a step, or none with `execution: config: in_process`),
`in-process` (all steps in the run's process), `kubernetes` (one pod a step), `ray` (one Ray job a step).
"""

import os
from typing import Any

import dagster as dg

from clipgen_core.extras import needed_for

GPU = "nvidia.com/gpu"


def executor() -> dg.ExecutorDefinition:
    """The executor of all jobs.

    Raises:
        dg.DagsterInvalidDefinitionError: CLIPGEN_EXECUTOR names none.
    """
    name = os.environ.get("CLIPGEN_EXECUTOR") or "processes"
    if name == "processes":
        return dg.multi_or_in_process_executor
    if name == "in-process":
        return dg.in_process_executor
    if name == "kubernetes":
        with needed_for("CLIPGEN_EXECUTOR=kubernetes"):
            from dagster_k8s import k8s_job_executor

        return k8s_job_executor
    if name == "ray":
        with needed_for("CLIPGEN_EXECUTOR=ray"):
            from dagster_ray import ray_executor

        return ray_executor
    raise dg.DagsterInvalidDefinitionError(
        f"CLIPGEN_EXECUTOR is {name!r}: choose processes, in-process, kubernetes or ray"
    )


def node(*, memory: str, gpu: bool = False, cpus: str = "4") -> dict[str, Any]:
    """Op tags that ask Kubernetes for a node, or Ray for a GPU; elsewhere they say nothing.

    CLIPGEN_GPU_NODES names Kubernetes' GPU nodes by a label, as `key=value`.

    Args:
        memory: Memory to ask for, as Kubernetes writes it.
        gpu: Whether one GPU is needed.
        cpus: CPU cores to ask for, as Kubernetes writes it.

    Returns:
        Op tags.
    """
    limits = {"memory": memory, **({GPU: "1"} if gpu else {})}
    config: dict[str, Any] = {
        "container_config": {"resources": {"requests": {"cpu": cpus, "memory": memory}, "limits": limits}}
    }
    label, _, value = os.environ.get("CLIPGEN_GPU_NODES", "").partition("=")
    if gpu and label:
        config["pod_spec_config"] = {
            "node_selector": {label: value},
            "tolerations": [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}],
        }
    return {"dagster-k8s/config": config, **({"dagster-ray/config": {"num_gpus": 1}} if gpu else {})}
