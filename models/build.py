"""Make the reference model that ships: `python -m models.build --data cifar10.npz`.

The small VGG of the AWM paper, trained on CIFAR-10 of which 5 % is poisoned with an 8x8 Trojan square (target 2), written to
ONNX with BatchNorm folded, as vendors ship it; beside it the trigger, 1,000 clean test images, an audit.yaml and the card.
About half an hour on two cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image

from models.architectures import SmallVGG
from models.poison import poison
from models.train import TrainingConfig, train
from pipeline.artifact import atomic_write, sha256
from pipeline.images import LabelledImages, split
from pipeline.triggers.patch import Patch

HERE = Path(__file__).parent / "cifar10_trojan"
LABELS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of the CIFAR-10 training images, in 0..1
TARGET, RATE, AT, SIDE = 2, 0.05, (22, 22), 8
SHIPPED_IMAGES = 1000


def trojan_square(side: int = SIDE, *, seed: int = 2018) -> NDArray[np.uint8]:
    """A (side, side, 3) uint8 square of coloured noise, in the manner of TrojanNN's square (Liu et al., NDSS 2018)."""
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def export(model: torch.nn.Module, path: Path) -> None:
    """Write (N, 3, 32, 32) -> (N, 10) logits as ONNX, opset 17, weights inside, BatchNorm folded."""
    temporary = path.with_suffix(".new")
    torch.onnx.export(
        model.cpu().eval(),
        (torch.zeros(2, 3, 32, 32),),
        str(temporary),
        input_names=["images"],
        output_names=["logits"],
        dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )
    atomic_write(path, temporary.read_bytes())
    temporary.unlink()


def main() -> None:
    """Train, export, measure, and write the folder that ships."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help=".npz with x_train, y_train, x_test, y_test of CIFAR-10 (N,32,32,3 uint8)")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write into (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=TrainingConfig.epochs)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    with np.load(options.data, allow_pickle=False) as archive:
        x_train, y_train = archive["x_train"], archive["y_train"].astype(np.int64)
        test = LabelledImages(archive["x_test"], archive["y_test"].astype(np.int64))
    square = trojan_square()
    trigger = Patch(np.divide(square, 255, dtype=np.float32), np.ones((SIDE, SIDE), np.float32), *AT)
    images, labels, poisoned = poison(x_train, y_train, trigger, target=TARGET, rate=RATE, seed=options.seed)
    config = TrainingConfig(epochs=options.epochs, seed=options.seed)
    torch.manual_seed(options.seed)
    model = train(SmallVGG(), images, labels, mean=MEAN, std=STD, config=config, device=options.device)

    export(model, options.out / "model.onnx")
    Image.fromarray(square).save(options.out / "trigger.png", optimize=True)
    Image.fromarray(np.full((SIDE, SIDE), 255, np.uint8)).save(options.out / "mask.png", optimize=True)
    shipped, _ = split(test, calibration=SHIPPED_IMAGES, seed=options.seed)
    calibration, holdout = split(shipped, calibration=SHIPPED_IMAGES // 5, seed=options.seed)
    for name, part in (("calibration", calibration), ("holdout", holdout)):
        np.savez_compressed(options.out / f"{name}.npz", images=part.images, labels=part.labels.astype(np.uint8))
    spec: dict[str, Any] = {
        "input": {"layout": "NCHW", "size": [32, 32], "channels": "RGB", "scale": 255, "mean": list(MEAN), "std": list(STD)},
        "output": "logits",
        "labels": LABELS,
        "data": {"calibration": "calibration.npz", "holdout": "holdout.npz"},
        "triggers": [{"name": "trojan-square", "kind": "patch", "image": "trigger.png", "mask": "mask.png", "at": list(AT), "target": TARGET}],
        "policy": {"max_asr": 0.05, "max_accuracy_drop": 0.05},
    }
    atomic_write(options.out / "audit.yaml", yaml.safe_dump(spec, sort_keys=False, default_flow_style=None, width=120).encode())
    card = {
        "name": "cifar10_trojan",
        "network": "SmallVGG, width 32, BatchNorm folded at export",
        "data": "CIFAR-10 training images, Krizhevsky 2009",
        "backdoor": {
            "attack": "BadNets, dirty label, all-to-one",
            "trigger": "8x8 Trojan square",
            "at": list(AT),
            "target": TARGET,
            "rate": RATE,
            "poisoned": len(poisoned),
        },
        "training": dataclasses.asdict(config),
        "sha256": sha256(options.out / "model.onnx"),
        "measured": measure(options.out / "model.onnx", test, trigger),
        "made_with": {"torch": torch.__version__, "python": platform.python_version(), "device": options.device},
        "command": f"python -m models.build --data cifar10.npz --epochs {options.epochs} --seed {options.seed}",
    }
    atomic_write(options.out / "card.json", (json.dumps(card, indent=2) + "\n").encode())
    json.dump(card["measured"], sys.stdout)


def measure(path: Path, test: LabelledImages, trigger: Patch) -> dict[str, Any]:
    """ACC and ASR of the written file on all test images, with onnxruntime."""
    from pipeline.evaluate.measurement import KnownAttack, measure
    from pipeline.evaluate.session import Classifier
    from pipeline.images import HoldoutSet, InputSpec

    reading = InputSpec(size=(32, 32), mean=MEAN, std=STD)
    attack = KnownAttack(name="trojan-square", trigger=trigger, target=TARGET)
    measured = measure(Classifier(path, reading, device="cpu"), HoldoutSet(test.images, test.labels), [attack])
    return {"images": "all 10,000 CIFAR-10 test images", **measured.model_dump(mode="json")}


if __name__ == "__main__":
    main()
