"""Where steps run, and what each asks of a node: chosen by the environment of the code location.

CLIPGEN_EXECUTOR: unset or `processes` (one process a step, or none with `execution: config: in_process`),
`in-process` (all steps in the run's process), `kubernetes` (one pod a step), `ray` (one Ray job a step).
"""

import os
from typing import Any

import dagster as dg

from clipgen_core.assets import ASSETS
from clipgen_core.extras import needed_for
from pipelines.deployment import deployment

GPU = "nvidia.com/gpu"
WAITING = 8  # GiB of a step that waits for its workers on Ray


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


def node(stage: str, memory: int) -> dict[str, Any]:
    """Op tags that ask Kubernetes for a node, or Ray for a GPU; elsewhere they say nothing.

    A step that trains in several processes asks for as many GPUs. One whose work is done by workers on Ray
    asks for none: it would hold the GPU that its workers wait for.

    CLIPGEN_GPU_NODES names Kubernetes' GPU nodes by a label, as `key=value`, and CLIPGEN_MEMORY the memory of
    each process in GiB.

    Args:
        stage: What the step runs. The deployment says where and in how many processes.
        memory: Memory of each process in GiB, unless CLIPGEN_MEMORY says otherwise.

    Returns:
        Op tags.

    Raises:
        dg.DagsterInvalidDefinitionError: A variable has a value that is not allowed.
    """
    run = deployment()
    asset = next(name for name in ASSETS if ASSETS[name].stage == stage)
    gpus = 0 if run.works_on_ray(asset) else run.own[asset].get("processes", 1)
    size = f"{_gib(memory) * gpus if gpus else WAITING}Gi"
    limits = {"memory": size, **({GPU: str(gpus)} if gpus else {})}
    requests = {"cpu": str(4 * gpus or 1), "memory": size}
    config: dict[str, Any] = {"container_config": {"resources": {"requests": requests, "limits": limits}}}
    label, value = _label()
    if gpus and label:
        config["pod_spec_config"] = {
            "node_selector": {label: value},
            "tolerations": [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}],
        }
    return {"dagster-k8s/config": config, **({"dagster-ray/config": {"num_gpus": gpus}} if gpus else {})}


def _gib(default: int) -> int:
    given = os.environ.get("CLIPGEN_MEMORY") or str(default)
    if not given.isdecimal() or int(given) == 0:
        raise dg.DagsterInvalidDefinitionError(
            f"CLIPGEN_MEMORY is {given!r}: write the memory of each process in GiB, such as 64"
        )
    return int(given)


def _label() -> tuple[str, str]:
    given = os.environ.get("CLIPGEN_GPU_NODES", "")
    label, _, value = given.partition("=")
    if given and not (label and value):
        raise dg.DagsterInvalidDefinitionError(
            f"CLIPGEN_GPU_NODES is {given!r}: write a label of the GPU nodes as key=value"
        )
    return label, value
