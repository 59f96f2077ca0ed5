"""Compiles for a TPU, in a process of its own: run by `compiler`, never imported.

A process that holds libtpu starts JAX in another way, so no other process does. Jobs come as JSON,
a line each, and leave as JSON: `python -m latency_models.tpu.worker GENERATION MODULE...`, where
the modules are those that define the ops of the jobs.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

# What libtpu asks of its host before it compiles for machines that are not here. The accelerator
# type is the same for all: the topology says which TPU is meant.
ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # Otherwise a lock lets one process compile at a time.
    "JAX_PLATFORMS": "cpu",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}
os.environ.update(ENVIRONMENT)  # Before JAX is imported, which reads them.

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import topologies  # noqa: E402

from latency_models.rows import decode_whole  # noqa: E402
from latency_models.tpu import lowering  # noqa: E402
from latency_models.tpu.generations import Generation, generation  # noqa: E402
from latency_models.tpu.hlo import kernels  # noqa: E402


def device(of: Generation) -> jax.sharding.Sharding:
    """The first device of the generation's smallest host."""
    options = {"chip_config_name": of.chip_config} if of.chip_config else {}
    topology = topologies.get_topology_desc(platform="tpu", topology_name=of.topology, **options)
    mesh = jax.sharding.Mesh(np.array(topology.devices[:1]), ("device",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def compiled(job: Mapping[str, Any], sharding: jax.sharding.Sharding) -> dict[str, Any]:
    """What the compiler says of the job's program."""
    whole = decode_whole(job["whole"])
    digest = lowering.digest(whole)
    if digest != job["digest"]:
        raise RuntimeError(
            f"this process lowers {digest} where {job['digest']} was asked for; JAX's settings "
            "differ between the two: set them by the environment, not in the program"
        )
    start = time.perf_counter()
    executable = lowering.lower(whole, sharding).compile()
    seconds = time.perf_counter() - start
    cost, text = executable.cost_analysis(), executable.as_text()
    if cost is None or text is None:
        raise RuntimeError("the compiler gives no cost analysis, or no text, of what it compiled")
    return {
        "digest": digest,
        "flops": cost["flops"],
        "transcendentals": cost.get("transcendentals", 0.0),
        "bytes": cost["bytes accessed"],
        "optimal_seconds": cost["optimal_seconds"],
        "kernels": kernels(text),
        "compile_s": round(seconds, 1),
    }


def serve(name: str, lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Answers the jobs in turn. One that fails is answered by its error, and the last."""
    sharding = device(generation(name))
    for line in lines:
        try:
            yield compiled(json.loads(line), sharding)
        except Exception as error:
            yield {"error": f"{type(error).__name__}: {error}"}
            return


def main() -> None:
    # libtpu writes to standard output; answers keep it for themselves.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    _, name, *modules = sys.argv
    for module in modules:
        importlib.import_module(module)
    for answer in serve(name, sys.stdin):
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
