"""Makes docs/zoo.md: networks of other packages, converted as they are, with random weights.

Each is converted on four random images and run on one more, on one core. `--only WORD` makes the rows whose name holds
the word anew and keeps the others, `--missing` those that the page lacks; without either all of them are made, in about
twenty minutes.
"""

import math
import os
import re
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import msat_det
from msat_det.base.checks import present
from msat_det.base.errors import InputError
from msat_det.base.files import write_whole
from msat_det.base.settings import PROJECT
from msat_det.models.importers.ultralytics import Queries
from msat_det.run.arguments import Parser
from msat_det.run.terminal import once

PAGE = PROJECT / "docs" / "zoo.md"
STAGES: dict[str, Any] = {
    "embedding_size": 16,
    "hidden_sizes": [16, 32, 64, 128],
    "depths": [1] * 4,
    "layer_type": "basic",
}
RATE = {"scale": "channel", "initial": "half", "signed": True, "gamma": 7, "factor": 0.5, "spiking_linear": True}
HEAD = "| network | image | converts | rate, T = 16 | energy | delta, T = 2 | energy | analog share | seconds |"
TEXT = """# Networks of other packages

For those who ask whether their network converts: what `msat_det.convert` makes of networks as their packages build
them, with no line changed. Weights and images are random; batch norms have seen four of the images and keep most units
active, so that errors do not grow from layer to layer as they do in random networks and not in trained ones.

- rate, delta: ‖outputs − float outputs‖ / ‖float outputs‖ on an image that calibration has not seen, after 16 timesteps
  of rate coding (`constant`, channel scales × .5, γ = 7, signed) and after 2 of delta coding (`delta`), both with
  `spiking_linear`;
- energy: of each, in units of the float network's;
- analog share: of the multiply-adds, those at full price in every timestep;
- seconds: of one core, for tracing, converting and running both.

levit_128s, whose softmaxes saturate with random weights, needs finer levels than these: .0013 with 12 bits and 6 terms
after 8 timesteps. efficientvit_m0 (no row) makes five to six times as much of an error in its input with random
weights, so its outputs come slowly: .72 after 16 and .21 after 256 timesteps of rate coding, .016 with 12 bits and 6
terms after 8 of delta coding.
poolformerv2_s12 squares its activations (StarReLU): channels that calibration has hardly seen are far below their
layer's others then, and each is sent as a burst of up to 4,096 spikes where a later image does activate it; that is
what its energy under rate coding is.

Of the detectors the dense part is converted, up to the maps that boxes are decoded from; of a two-stage detector of
torchvision's (rcnn) both stages, with 100 regions. DETR, Conditional DETR, Deformable DETR, RT-DETR, D-FINE, LW-DETR,
RF-DETR, Table Transformer and YOLOS convert whole, up to logits and boxes. Two stages, and RT-DETR and those of its
kind, pick their regions and queries by their scores, under rate coding in timesteps 1, 2, 3, 5, 9, 17, …
([why](torchvision.md#two-stages)). Where two have next to the same one, a conversion may give them in another order, or
pick the other: each is compared with the nearest one here. With random weights most scores are next to the same.
DAB-DETR, which puts the images of all its layers into one dimension, and YOLO-World, which has words beside them, are
refused. Of torchvision's 80 classifiers all are here but regnet_y_128gf, whose weights take 2.6 GB, and vgg11_bn, which
is timm's here; tests convert both. The page is made by `python tools/make_zoo_table.py`.

"""


class Around(nn.Module):
    """A network of another package, ``net``, of which a part is converted or some of the outputs are taken."""

    def __init__(self, net: Any):
        super().__init__()
        self.net = net


class Maps(Around):
    """What an Ultralytics detector decodes boxes from: all that lies behind is no part of the output."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.net(x)[1]
        maps = maps.get("one2one", maps)
        return {"boxes": maps["boxes"], "scores": maps["scores"]}


class BothStages(Around):
    """A two-stage detector of torchvision's on images without padding, its regions in sides of the image."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = self.net(torch.cat((x, torch.ones_like(x[:, :1])), 1))
        return found | {"proposals": found["proposals"] / x.shape[-1]}


class Boxes(Around):
    """A DETR of transformers, from pixels to logits and boxes."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = self.net(pixel_values=x)
        return {"logits": found.logits, "boxes": found.pred_boxes}


def ultralytics(name: str) -> nn.Module:
    os.environ["YOLO_OFFLINE"] = "1"
    from ultralytics.nn import tasks

    if name.startswith("rtdetr"):
        return Queries(tasks.RTDETRDetectionModel(f"{name}.yaml", verbose=False))
    kinds = {"seg": tasks.SegmentationModel, "pose": tasks.PoseModel, "obb": tasks.OBBModel}
    kind = kinds.get(name.partition("-")[2], tasks.DetectionModel)
    return Maps(kind(f"{name}.yaml", verbose=False))


def picking(name: str) -> nn.Module:
    """A DETR of transformers that picks its queries by their scores, from pixels to logits and boxes."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    small: dict[str, Any] = {"d_model": 32, "num_queries": 20, "decoder_layers": 2, "decoder_ffn_dim": 64}
    if name in ("rt_detr", "rt_detr_v2", "d_fine"):
        levels = {"out_features": ["stage2", "stage3", "stage4"]}
        small |= {"backbone_config": transformers.RTDetrResNetConfig(**STAGES | levels), "encoder_hidden_dim": 32}
        small |= {"encoder_in_channels": [32, 64, 128], "decoder_in_channels": [32, 32, 32], "encoder_ffn_dim": 64}
        small |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4)
    elif name == "lw_detr":
        sides: dict[str, Any] = {"image_size": 64, "pretrain_image_size": 64, "num_windows": 4}
        layers: dict[str, Any] = {"num_hidden_layers": 3, "window_block_indices": [0, 2], "out_indices": [1, 3]}
        vit = transformers.LwDetrViTConfig(hidden_size=32, num_attention_heads=4, mlp_ratio=2, **sides, **layers)
        small |= {"backbone_config": vit, "projector_scale_factors": [1.0], "num_queries": 10, "group_detr": 1}
        small |= dict.fromkeys(("decoder_self_attention_heads", "decoder_cross_attention_heads"), 4)
    kind = {"rt_detr": "RTDetr", "rt_detr_v2": "RTDetrV2", "d_fine": "DFine", "lw_detr": "LwDetr", "rf_detr": "RfDetr"}
    small |= {"num_queries": 10} if name == "rf_detr" else {}
    config = getattr(transformers, f"{kind[name]}Config")(**small)
    return Boxes(getattr(transformers, f"{kind[name]}ForObjectDetection")(config))


def detr(name: str) -> nn.Module:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    kind = name.title().replace("_", "") + "{}"
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "num_labels": 5}
    if name == "yolos":
        options: dict[str, Any] = {**sizes, "hidden_size": 32, "image_size": [64, 64], "num_detection_tokens": 10}
    else:
        levels = ["stage2", "stage3", "stage4"] if name == "deformable_detr" else ["stage4"]
        options = {"backbone_config": transformers.ResNetConfig(**STAGES | {"out_features": levels}), "backbone": None}
        options |= {"use_timm_backbone": False, "use_pretrained_backbone": False, "d_model": 32, "num_queries": 10}
        for part in ("encoder", "decoder"):
            options |= {f"{part}_layers": 2, f"{part}_ffn_dim": 64, f"{part}_attention_heads": 4}
        options |= {"num_feature_levels": 3} if name == "deformable_detr" else {}
    config = getattr(transformers, kind.format("Config"))(**options)
    return Boxes(getattr(transformers, kind.format("ForObjectDetection"))(config))


def features(name: str) -> nn.Module:
    """A backbone of timm's, with the maps that detectors put their necks on."""
    from timm import create_model

    return create_model(name.partition(",")[0], features_only=True)


def dense(name: str) -> nn.Module:
    """The dense part of a detector of torchvision's."""
    from torchvision.models import get_model

    net = get_model(name, weights=None, weights_backbone=None, num_classes=5)
    if "rcnn" not in name:
        return msat_det.TorchvisionDetector(net, columns=list("abcde")).net
    net.rpn._post_nms_top_n["testing"] = 100
    return BothStages(msat_det.TorchvisionDetector(net, columns=list("abcde"), size=64).net)


def timm(name: str, **options: Any) -> nn.Module:
    from timm import create_model

    return create_model(name, num_classes=10, **options)


def torchvision(name: str, **options: Any) -> nn.Module:
    from torchvision.models import get_model

    kept = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    return get_model(name, weights=None, num_classes=10, **kept, **options)


def huge_vit(name: str) -> nn.Module:
    """torchvision's vit_h_14 with two of its 32 layers: with all of them it takes 2.5 GB, several times."""
    from torchvision.models import VisionTransformer

    return VisionTransformer(56, 14, num_layers=2, num_heads=16, hidden_dim=1280, mlp_dim=5120, num_classes=10)


Make = Callable[[str], nn.Module]
ULTRALYTICS = """
yolov5nu yolov8n yolov9t yolov10n yolo11n yolo12n yolo26n yolov3-tiny yolov5su yolov6n yolov8s yolov9s yolov10s yolo11s
yolo12s yolo26s yolov8n-p2 yolov8n-p6 yolov8n-seg yolov8n-pose yolov8n-obb yolo11n-seg yolo11n-pose yolo11n-obb
yolo26n-seg yolo26n-pose yolo26n-obb rtdetr-l rtdetr-resnet50
"""
QUERIES = "rt_detr rt_detr_v2 d_fine lw_detr rf_detr"
DETRS = "detr conditional_detr deformable_detr table_transformer yolos"
DENSE = """
ssdlite320_mobilenet_v3_large retinanet_resnet50_fpn retinanet_resnet50_fpn_v2 fcos_resnet50_fpn fasterrcnn_resnet50_fpn
fasterrcnn_resnet50_fpn_v2 fasterrcnn_mobilenet_v3_large_fpn maskrcnn_resnet50_fpn maskrcnn_resnet50_fpn_v2
keypointrcnn_resnet50_fpn
"""
FEATURES = """
resnet50 mobilenetv2_100 mobilenetv3_large_100 mobilenetv4_conv_small efficientnet_b0 convnext_tiny hrnet_w18_small
cspdarknet53 cs3darknet_s darknet53 ese_vovnet19b_dw dla34 regnety_002 repvgg_a0 repvit_m0_9 hgnetv2_b0 fasternet_t0
starnet_s1 pvt_v2_b0 edgenext_xx_small rexnet_100 ghostnetv2_100 ghostnetv3_100 res2net50_26w_4s mixnet_s tinynet_e
swiftformer_xs mobilevitv2_050 focalnet_tiny_srf davit_tiny nextvit_small inception_next_tiny mvitv2_tiny
"""
TIMM = """
resnet18d vgg11_bn mobilenetv3_small_100 efficientnet_lite0 tf_efficientnetv2_b0 lcnet_050 mobileone_s0 mobilevit_xxs
efficientvit_b0 edgenext_xx_small convnextv2_atto eca_nfnet_l0 fastvit_t8 ghostnet_100
mambaout_femto nf_regnet_b0 poolformer_s12 poolformerv2_s12
"""
TORCHVISION = """
alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet mnasnet0_5 mobilenet_v2 mobilenet_v3_small
regnet_x_400mf regnet_y_400mf resnet18 resnext50_32x4d shufflenet_v2_x0_5 squeezenet1_0 swin_b swin_s swin_t swin_v2_b
swin_v2_s swin_v2_t vgg11 wide_resnet50_2
"""
LARGER = """
convnext_base convnext_large convnext_small densenet161 densenet169 densenet201 efficientnet_b1 efficientnet_b2
efficientnet_b3 efficientnet_b4 efficientnet_b5 efficientnet_b6 efficientnet_b7 efficientnet_v2_l efficientnet_v2_m
mnasnet0_75 mnasnet1_0 mnasnet1_3 mobilenet_v3_large regnet_x_16gf regnet_x_1_6gf regnet_x_32gf regnet_x_3_2gf
regnet_x_800mf regnet_x_8gf regnet_y_16gf regnet_y_1_6gf regnet_y_32gf regnet_y_3_2gf regnet_y_800mf regnet_y_8gf
resnet101 resnet152 resnet34 resnet50 resnext101_32x8d resnext101_64x4d shufflenet_v2_x1_0 shufflenet_v2_x1_5
shufflenet_v2_x2_0 squeezenet1_1 vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn wide_resnet101_2
"""
ZOO: dict[str, tuple[Make, int]] = {  # how it is made, and the side of its images
    **dict.fromkeys(ULTRALYTICS.split(), (ultralytics, 64)),
    **dict.fromkeys(QUERIES.split(), (picking, 64)),
    **dict.fromkeys(DETRS.split(), (detr, 64)),
    **dict.fromkeys(DENSE.split(), (dense, 64)),
    "ssd300_vgg16": (dense, 304),
    **{f"{name}, features": (features, 64) for name in FEATURES.split()},
    **dict.fromkeys(TIMM.split(), (timm, 64)),
    "levit_128s": (timm, 224),
    "vit_tiny_patch16_224": (partial(timm, img_size=64), 64),
    "swin_tiny_patch4_window7_224": (partial(timm, img_size=56), 56),
    **dict.fromkeys(TORCHVISION.split(), (torchvision, 64)),
    "inception_v3": (torchvision, 128),
    "maxvit_t": (torchvision, 224),
    **{f"vit_{version}": (partial(torchvision, image_size=64), 64) for version in ("b_16", "b_32", "l_16", "l_32")},
    "vit_h_14, 2 of its layers": (huge_vit, 56),
    **dict.fromkeys(LARGER.split(), (torchvision, 64)),
}
# They pick queries, or regions, by their scores.
PICKING = [*QUERIES.split(), *(name for name in ZOO if "rtdetr" in name or "rcnn" in name)]


def build(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """One of ``ZOO`` in evaluation mode, and five images for it."""
    torch.manual_seed(seed)
    make, size = ZOO[name]
    net = make(name).eval().requires_grad_(False)
    coarse = F.interpolate(torch.randn(5, 3, size // 8, size // 8), size, mode="bilinear")
    images = coarse + 0.3 * torch.randn(5, 3, size, size)
    norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.train().momentum = None
        if norm.affine:  # many are 0 at first, and their branches silent
            nn.init.uniform_(norm.weight, 0.4, 0.7)
            nn.init.normal_(norm.bias, 0.5, 0.3)
    for key, parameter in net.named_parameters():
        if key.rsplit(".", 1)[-1] in ("gamma", "layer_scale"):
            parameter.fill_(0.5)
        elif parameter.dim() > 1 and not parameter.any():  # the last layer of some
            nn.init.normal_(parameter, 0, 0.05)
    with torch.no_grad():
        net(images[:4])
    for norm in norms:
        present(norm.running_var).clamp_(min=1e-2)
    return net.eval(), images


def error(got: Any, wanted: Any) -> float:
    """‖got − wanted‖ / ‖wanted‖ over all outputs."""
    pairs = list(zip(pytree.tree_leaves(got), pytree.tree_leaves(wanted), strict=True))
    squares = [((a - b).double().square().sum().item(), b.double().square().sum().item()) for a, b in pairs]
    return math.sqrt(sum(s for s, _ in squares) / max(sum(s for _, s in squares), 1e-30))


def in_order(got: Any, wanted: Any) -> Any:
    """A detector's queries (B, Q, n), those nearest to ``wanted``'s in their order, where they are picked by scores."""
    every, goal = (torch.cat(pytree.tree_leaves(found), -1) for found in (got, wanted))
    nearest = torch.cdist(goal, every).argmin(-1, keepdim=True)
    return pytree.tree_map(lambda x: x.take_along_dim(nearest, 1), got)


def told(refusal: InputError) -> str:
    return re.sub(r"/\S*/site-packages/", "", str(refusal)).replace("|", "¦")


def row(name: str) -> str:
    net, images = build(name)
    size = images.shape[-1]
    began = time.process_time()
    try:
        observed = msat_det.observe(net, images[:4])
    except InputError as refusal:
        return f"| {name} | {size} | {told(refusal)} | | | | | | |"
    with torch.no_grad():
        wanted = net(images[4:])
    cells = []
    for method, T, options in (("constant", 16, RATE), ("delta", 2, {"spiking_linear": True})):
        snn = msat_det.convert(observed, method=method, T=T, **options)
        try:
            got = snn.run(images[4:], T)[T]
            found = error(in_order(got, wanted) if name in PICKING else got, wanted)
            cells += [f"{found:.3f}", f"{snn.counts[T].energy_ratio:.2f}"]
        except InputError as refusal:
            cells += [told(refusal), ""]
    share, seconds = snn.fanout.analog_share, time.process_time() - began
    return f"| {name} | {size} | yes | {' | '.join(cells)} | {share:.2f} | {seconds:.0f} |"


@once
def main(argv: list[str]) -> None:
    """Make the rows that are asked for, one by one, and the page after each."""
    parser = Parser(description=__doc__)
    parser.add_argument("--only", default="", help="make the rows whose name holds this word")
    parser.add_argument("--missing", action="store_true", help="make the rows that the page lacks")
    given = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    old = PAGE.read_text(encoding="utf-8").splitlines() if PAGE.exists() else []
    rows = {line.split("|")[1].strip(): line for line in old if line.startswith("| ")}
    for name in ZOO:
        if given.only in name and not (given.missing and name in rows):
            rows[name] = row(name)
            print(rows[name], flush=True)
            table = [HEAD, "|---" * HEAD.count(" |") + "|", *(rows[name] for name in ZOO if name in rows)]
            page = TEXT + "\n".join(table) + "\n"
            write_whole(PAGE, partial(Path.write_bytes, data=page.encode()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
