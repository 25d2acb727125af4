"""Energy tables are data: by name, from a file, and what is no table is told in one line."""

import json
from pathlib import Path

import pytest
from support.networks import images, observed

from msat_det.base.errors import InputError
from msat_det.methods.convert import spiking_network
from msat_det.run.arguments import PROJECT, load_config
from msat_det.spiking.energy import TABLES, prices


def test_the_default_is_horowitz_at_45_nm() -> None:
    price = prices()
    assert (price.mac, price.ac) == (4.6, 0.9)
    assert "Horowitz" in price.source
    assert (prices("45nm-int8").mac, prices("45nm-int8").ac) == (0.3, 0.1)  # .2 + .1, sums of 32 bits
    assert (price.shift, prices("45nm-shift").mac, prices("45nm-shift").shift) == (0, 4.6, 0.13)


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_file_of_ones_own_changes_energy_and_nothing_else(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"mine.{suffix}"
    file.write_text(json.dumps({"mac": 10, "ac": 1.0, "source": "measured"}))
    assert prices(str(file)).source == "measured"
    snn = spiking_network("constant", {}, observed("plain"), 8)
    snn.run(images(), 8)
    before = snn.counts[8]
    snn.energy = str(file)
    snn.run(images(), 8)
    after = snn.counts[8]
    assert after.float_energy == 10 * before.macs
    assert after.sops.tolist() == before.sops.tolist()
    macs = sum(cost.macs for cost in after.costs.values())
    adds = sum(cost.accumulations for cost in after.costs.values())
    assert after.energy.tolist() == pytest.approx((10 * macs + adds).tolist())


@pytest.mark.parametrize(
    "text", ["mac: 1", "mac: -1\nac: 1\nsource: s", "mac: x\nac: 1\nsource: s", "[", "7", "{mac: 1"]
)
def test_what_is_no_table_is_told(tmp_path: Path, text: str) -> None:
    file = tmp_path / "table.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=r"table\.yaml"):
        prices(str(file))


def test_an_unknown_table_is_told_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="45nm, 45nm-shift, 45nm-int8"):
        prices("7nm")


def test_the_command_line_takes_a_name_or_a_file() -> None:
    def energy(word: str) -> str:
        return load_config(["--cfg", str(PROJECT / "configs/vgg_demo.yaml"), "--energy", word]).energy

    assert energy("45nm-int8") == "45nm-int8"
    assert energy("mine.yaml") == str(Path.cwd() / "mine.yaml")
    assert TABLES.is_file()


def test_the_costs_at_a_recorded_t_stay_those_of_that_t() -> None:
    """Of every call site, whatever was recorded after it."""
    snn = spiking_network("constant", {"scale": "channel"}, observed("yolo"), 16)
    snn.run(images(), 16, (4, 16))
    both = {
        t: {name: cost.spikes.tolist() for name, cost in snn.counts[t].costs.items() if cost.spikes.dim()}
        for t in (4, 16)
    }
    snn.run(images(), 4)
    alone = {name: cost.spikes.tolist() for name, cost in snn.counts[4].costs.items() if cost.spikes.dim()}
    assert both[4] == alone
    assert any(both[16][name] != alone[name] for name in alone)
