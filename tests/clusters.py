"""Clusters of real processes of Ray on this machine, a raylet for every node."""

import contextlib
from collections.abc import Iterator
from typing import Any

from ray.cluster_utils import Cluster

# The dashboard and what serves it are a dozen processes that no test looks at.
LEAN = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}


@contextlib.contextmanager
def cluster(**head: Any) -> Iterator[Cluster]:
    """A cluster of one node, started with what `head` says; all of its processes end here."""
    found = Cluster(initialize_head=True, head_node_args={**LEAN, **head})
    try:
        yield found
    finally:
        found.shutdown()
