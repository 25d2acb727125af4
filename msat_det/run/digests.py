"""What a run is computed from, as digests: by them --resume and the ranks tell whether it is still the same."""

import json

from msat_det.base import ranks
from msat_det.base.config import Config
from msat_det.base.errors import InputError
from msat_det.base.files import digest, file_digest, is_file
from msat_det.base.settings import PATH_KEYS, dotted
from msat_det.data import Dataset
from msat_det.methods.observe import Observation
from msat_det.models.own import file_of

CONTENTS = "contents of "  # a file that the configuration names, by its key


def digests_of(config: Config, observation: Observation, dataset: Dataset, calibration: Dataset) -> dict[str, str]:
    """What a run is computed from by names in plural, such as "weights"."""
    weights = observation.graph.module.state_dict().values()
    return {
        "evaluated images": images_digest(dataset),
        "weights": digest(*(tensor.cpu().numpy().tobytes() for tensor in weights)),
        "calibration images": images_digest(calibration),
        **{CONTENTS + key: content for key, content in named_files(config).items()},
    }


def require_same(own: dict[str, str], first: dict[str, str]) -> None:
    """Raise InputError where a rank computes from something else than the first one. own, first: their digests."""
    for name in own | first:
        if own.get(name) != first.get(name):
            raise InputError(
                f"the {name} of rank {ranks.rank()} are not those of rank 0: every machine needs the same files"
            )


def images_digest(dataset: Dataset) -> str:
    """Of the images' names, order and lengths: to digest their bytes would take as long as reading them all."""
    return digest(json.dumps([(id, dataset.length(id)) for id in dataset.ids]).encode())


def named_files(config: Config) -> dict[str, str]:
    """The SHA-256 of every file that the configuration names (weights, prices, a fit's plan …), by its key; under
    model.name of the module that builds a network of one's own."""
    names = {key: name for key, name in dotted(config.values()).items() if key in PATH_KEYS or key.endswith(".plan")}
    names["model.name"] = file_of(config.model.name)
    return {key: file_digest(name) for key, name in names.items() if isinstance(name, str) and is_file(name)}
