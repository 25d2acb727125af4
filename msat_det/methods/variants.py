"""The options that change the graph itself: call sites kept analog, and neurons on linear outputs."""

from msat_det.base.errors import InputError
from msat_det.graph.edits import add_identity, keep_analog, linear_carriers
from msat_det.graph.fanout import fan_out
from msat_det.methods.observe import Observation, observe_sites
from msat_det.methods.weights import with_int8_weights


def variant(observation: Observation, analog: tuple[str, ...], spiking_linear: bool, int8: bool = False) -> Observation:
    """The observation of the same network with call sites ``analog`` kept analog and, where asked for, linear outputs
    made to spike and weights of eight bits (what was observed is the float network all the same).

    Methods with the same setting share one, and all of them the statistics of the added neurons, which are observed in
    one more pass over the calibration images.

    Raises InputError for a name that is no call site, and if none would be left.
    """
    if not analog and not spiking_linear and not int8:
        return observation
    key = (frozenset(analog), spiking_linear, int8)
    if key not in observation.variants:
        graph = observation.graph.copy()
        for name in analog:
            keep_analog(graph, name)
        added = [add_identity(graph, node) for node in linear_carriers(graph)] if spiking_linear else []
        if not graph.sites:
            raise InputError(
                "option analog names every call site: leave one out, or nothing spikes"
                if analog
                else "the network has no activation, so there is nothing that would spike: convert one that has"
            )
        sites = dict(observation.sites)
        for other in observation.variants.values():
            sites |= other.sites
        unseen = [node for node in added if node.name not in sites]
        if unseen:
            sites |= observe_sites(graph, unseen, observation.batches)
        if int8:
            graph = with_int8_weights(graph)
        fanout = fan_out(graph)
        observation.variants[key] = Observation(graph, fanout, sites, observation.batches, observation.detector)
    return observation.variants[key]
