"""One worker and two, a core each: training by DDP over gloo, embedding by Ray's actors.

Run as a module by torchrun it is one process of the training.
"""

import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.tables import BATCH, TRACKER, VIT_B_32, small_clip, write_photos
from benchmarks.timing import Row, in_turn, seconds
from clipgen_core.device import autocast
from clipgen_core.models.shapes import TRANSFORMERS
from clipgen_core.models.transformer import Transformer
from clipgen_core.settings.compute import ComputeConfig
from clipgen_core.stages import embeddings, images
from clipgen_core.storage import Storage
from clipgen_core.training import distributed
from clipgen_core.training.losses import code_cross_entropy
from clipgen_core.training.optim import adamw

CODES, GRID, DIM, EACH = 256, 8, 256, 64  # the demo's shape; images a process and step
FEW, MANY = 240, 960  # images embedded; the difference leaves out starting the workers


def scaling() -> list[Row]:
    """Images a second with two workers against one."""
    speeds = [_training_speed(processes) for processes in (1, 2)]
    detail = "DDP over gloo, {:.1f} and {:.1f} images/s, a core a process".format(*speeds)
    rows = [Row("scaling", "training, 2 processes / 1", speeds[1] / speeds[0], "x", "reported", detail)]
    speeds = [_embedding_speed(workers) for workers in (1, 2)]
    detail = "Ray actors, {:.1f} and {:.1f} images/s, a core an actor".format(*speeds)
    return [*rows, Row("scaling", "embedding, 2 workers / 1", speeds[1] / speeds[0], "x", "reported", detail)]


def _training_speed(processes: int) -> float:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "-m", "benchmarks.scaling"], env=environment, capture_output=True, text=True, check=True
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def _embedding_speed(workers: int) -> float:
    os.environ |= {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    with tempfile.TemporaryDirectory() as scratch:
        clip = small_clip(Path(scratch) / "clip", **VIT_B_32)
        compute = ComputeConfig(where="ray", workers=workers, cpus=1)
        config = embeddings.Config(batch_size=BATCH, block_size=60, compute=compute)
        times = []
        for count in (FEW, MANY):
            source, out = Path(scratch) / f"in{count}", Storage(f"{scratch}/root{count}")
            write_photos(source, count)
            table = images.run(images.Config(), source=str(source), out=out, tracker=TRACKER).table
            embed = functools.partial(
                embeddings.run, config, images=table, clip=clip, out=out, tracker=TRACKER
            )
            times.append(seconds(embed))
    return (MANY - FEW) / (times[1] - times[0])


def main() -> None:
    """One process: time a training step and, in the first process, print all processes' images a second."""
    torch.set_num_threads(1)
    distributed.start()
    model = Transformer(TRANSFORMERS["nano"], CODES, GRID, DIM)
    distributed.spread(model, "ddp")
    optimizer = adamw([model], 1e-4)
    codes = torch.randint(CODES, (EACH, GRID * GRID))
    embedding = torch.nn.functional.normalize(torch.randn(EACH, 1, DIM), dim=-1)
    dropped = torch.arange(EACH) % 10 == 0

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast("cpu"):
            loss = code_cross_entropy(model(codes[:, :-1], embedding, dropped=dropped), codes)
        loss.backward()
        optimizer.step()

    (times,) = in_turn(step, rounds=10, warm_up=3)
    if distributed.rank() == 0:
        print(json.dumps(EACH * distributed.world_size() / statistics.median(times)))


if __name__ == "__main__":
    main()
