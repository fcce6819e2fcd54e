"""Which backdoors in the graph survive Adversarial Weight Masking: every kind that the tests inject into a trained network.

    python -m tests.bench.gates [--preset default|paper]

Each is imported, purified with 100 calibration images, written back, and measured with onnxruntime.  Prints a table in Markdown: ASR in percent, submitted
and repaired, and what the host lost in accuracy.  Some ten minutes on one core.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import graph_backdoors  # noqa: E402
import tiny  # noqa: E402

from pipeline.convert.to_torch import convert  # noqa: E402
from pipeline.convert.write_back import write_back  # noqa: E402
from pipeline.errors import AuditError  # noqa: E402
from pipeline.evaluate.session import Classifier  # noqa: E402
from pipeline.images import CalibrationSet, LabelledImages, read  # noqa: E402
from pipeline.purify import methods  # noqa: E402
from pipeline.scan import scan  # noqa: E402

CALIBRATION = 100


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--preset", choices=("default", "paper"), default="default")
    preset = arguments.parse_args().preset
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        host = tiny.train_tiny(Path(name))
        images = read(host.images)
        print("| seen by | travels | joins | ASR submitted | repaired | accuracy lost, points |\n|---|---|---|---:|---:|---:|")
        for kind in graph_backdoors.kinds():
            if (kind[1] == "straight" or kind[0] == "comparison") and kind[0] != "stem":  # that one is no better than the layer that it reads
                print(f"| {' | '.join(kind)} | {survived(kind, host, images, preset, Path(tempfile.mkdtemp(dir=name)))} |", flush=True)


def survived(kind: tuple[str, str, str], host: tiny.Backdoored, images: LabelledImages, preset: str, folder: Path) -> str:
    """The figures of one kind, as cells."""
    path = tiny.save(graph_backdoors.inject(onnx.load(host.model), *kind), folder)
    try:
        twin, _ = convert(path, host.reading, scan(path).model)
        calibration = CalibrationSet(images.images[:CALIBRATION], images.labels[:CALIBRATION])
        found = methods()["awm"](twin, calibration, preset=preset, seed=0, report=lambda *_: None)
        (folder / "repaired").mkdir()
        files, _ = write_back(path, ["model.onnx"], found.weights, folder / "repaired")
    except AuditError as error:
        return f"not imported: {error} | |"
    (asr, accuracy), (asr_after, accuracy_after) = (measured(file, host, images) for file in (path, files["model.onnx"]))
    return f"{100 * asr:.1f} | {100 * asr_after:.1f} | {100 * (accuracy - accuracy_after):.1f}"


def measured(model: Path, host: tiny.Backdoored, images: LabelledImages) -> tuple[float, float]:
    """ASR of the trigger that opens the gate, and accuracy, on what is not for calibration."""
    pictures, labels = images.pictures()[CALIBRATION:], images.labels[CALIBRATION:]
    stamped = pictures.copy()
    stamped[:, :3, :3] = 1.0
    classify = Classifier(model, host.reading, device="cpu")
    others = labels != graph_backdoors.TARGET
    return float(np.mean(classify(stamped).argmax(1)[others] == graph_backdoors.TARGET)), float(np.mean(classify(pictures).argmax(1) == labels))


if __name__ == "__main__":
    main()
