"""Darknet networks put together at random: refused in one line, or a network that runs as its shapes say."""

import contextlib
from pathlib import Path

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from msat_det.base.errors import InputError
from msat_det.models.importers.darknet.cfg import parse_cfg
from msat_det.models.importers.darknet.layers import ACTIVATIONS
from msat_det.models.importers.darknet.network import DarknetNet

BACK = st.integers(-4, 1)
SMALL = st.integers(1, 4)
OPTIONS: dict[str, dict[str, st.SearchStrategy]] = {
    "convolutional": {
        **{
            "filters": st.sampled_from([1, 2, 4, 8]),
            "size": SMALL,
            "stride": st.integers(1, 2),
            "stride_y": st.integers(1, 2),
            "pad": st.integers(0, 1),
        },
        **{"groups": st.sampled_from([1, 2, 4]), "dilation": st.integers(1, 2), "batch_normalize": st.integers(0, 1)},
        "activation": st.sampled_from([*ACTIVATIONS, "none"]),
    },
    "maxpool": {"size": SMALL, "stride": SMALL, "padding": st.integers(0, 4), "stride_x": SMALL},
    "avgpool": {},
    "upsample": {"stride": SMALL},
    "dropout": {"probability": st.floats(-1, 2)},
    "route": {
        "layers": st.lists(BACK, min_size=1, max_size=3).map(lambda n: ",".join(map(str, n))),
        "groups": st.integers(1, 2),
        "group_id": st.integers(0, 1),
    },
    "shortcut": {"from": BACK, "activation": st.sampled_from(["linear", "relu"])},
    "scale_channels": {"from": BACK},
    "sam": {"from": BACK},
    "reorg": {"stride": SMALL},
    "reorg3d": {"stride": SMALL},
    "implicit": {"filters": st.sampled_from([1, 2, 4, 8]), "atoms": st.integers(1, 2)},
    "shift_channels": {"from": BACK},
    "control_channels": {"from": BACK},
}


@st.composite
def sections(draw: st.DrawFn) -> str:
    kind = draw(st.sampled_from([*OPTIONS, "convolutional", "convolutional"]))
    options = draw(st.fixed_dictionaries({}, optional=OPTIONS[kind]))
    if "from" in OPTIONS[kind] or kind == "route":
        key = "layers" if kind == "route" else "from"
        options.setdefault(key, draw(OPTIONS[kind][key]))
    return f"[{kind}]\n" + "".join(f"{name}={value}\n" for name, value in options.items())


@given(st.lists(sections(), max_size=8), st.sampled_from([8, 12, 16]), st.integers(1, 2))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_networks_run_as_their_shapes_say(tmp_path: Path, parts: list[str], size: int, anchors: int) -> None:
    path = tmp_path / "net.cfg"
    head = f"[convolutional]\nfilters={anchors * 7}\nactivation=linear\n[yolo]\nclasses=2\n"
    head += f"anchors={','.join(['3,5'] * anchors)}\nnum={anchors}\n"
    path.write_text(f"[net]\nwidth={size}\nheight={size}\n{''.join(parts)}{head}")
    net = None
    with contextlib.suppress(InputError):
        net = DarknetNet(parse_cfg(path))
    if net is None:
        return
    (output,) = net(torch.zeros(2, 3, size, size))
    (found,) = net.heads.values()
    assert output.shape == (2, anchors * 7, size // found.stride, size // found.stride)
