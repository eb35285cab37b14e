"""A Ray cluster of two nodes on this machine, in a separate process: `kill_cluster.py CPUS`.

Prints its address and its nodes' processes as one line of JSON, and exits at end of input.
"""

from __future__ import annotations

import json
import sys

from ray.cluster_utils import Cluster


def main() -> None:
    cpus = int(sys.argv[1])  # per node
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": cpus,
            "include_dashboard": False,
            "object_store_memory": 100 * 2**20,
        },
    )
    try:
        cluster.add_node(num_cpus=cpus, object_store_memory=100 * 2**20)
        head, second = cluster.head_node, next(iter(cluster.worker_nodes))

        def pid(node, name: str) -> int:
            return node.all_processes[name][0].process.pid

        print(
            json.dumps(
                {
                    "address": cluster.address,
                    "gcs": pid(head, "gcs_server"),
                    "head": pid(head, "raylet"),
                    "node": pid(second, "raylet"),
                }
            ),
            flush=True,
        )
        sys.stdin.read()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
