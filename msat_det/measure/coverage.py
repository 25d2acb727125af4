"""The coverage tables of several networks as one."""

from msat_det.methods.observe import Observation
from msat_det.spiking.network import SpikingNetwork
from msat_det.spiking.nodes import node_table


def coverage(observation: Observation, networks: dict[str, SpikingNetwork]) -> list[dict]:
    """The tables of several networks as one: a row per node of the traced graph, its ``theta`` by label.

    A network whose options changed its graph (``analog``, ``spiking_linear``) has rows of its own behind these, marked
    with its label as ``method``.
    """
    table = node_table(observation.graph, observation.fanout, {}, observation.maxima)
    shared = table[:]
    for row in shared:
        if "activation" in row:
            row["theta"] = {}
    for label, network in networks.items():
        own = network.coverage
        for row in own:
            if "theta" in row:
                row["theta"] = {label: row["theta"]}
        if network.graph is not observation.graph:
            table += [{"method": label} | row for row in own]
            continue
        for row, mine in zip(shared, own, strict=True):
            if "theta" in row:
                row["theta"] |= mine["theta"]
    return table
