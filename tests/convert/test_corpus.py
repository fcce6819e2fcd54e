"""Models that strangers made: whatever can be converted agrees with onnxruntime, and takes new weights back."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from third_party import CORPUS

from pipeline.convert.parity import compare, relative_difference
from pipeline.convert.to_torch import convert
from pipeline.convert.write_back import differences, write_back
from pipeline.errors import AuditError, ConversionFailed, ImagesRefused, ModelRefused
from pipeline.evaluate.reading import layouts
from pipeline.evaluate.session import Classifier
from pipeline.images import InputSpec
from pipeline.scan import scan

MODELS = sorted(CORPUS.rglob("*.onnx")) if CORPUS.is_dir() else []
CONVERTIBLE = {  # those that were, once, and must stay so
    "dhkim2810_mnist_sq2_t0", "herry-aka_mnist_sq5_t1", "verazuo_cifar10_sq5_t1", "wxr_cifar10_all2all", "wxr_cifar10_clean", "benpinhasov_mesonet_deepfake",
    "edwin19_fashion_mnist", "emclab_squeezenet_cifar10", "ghotiv_resnet18", "ort_java_cnn_mnist_pytorch", "vnncomp21_marabou_cifar10_small",
    "vnncomp21_mnistfc_256x4", "vnncomp21_oval_cifar_base_kw", "vnncomp23_gtsrb_bnn_48",
}  # fmt: skip
pytestmark = [
    pytest.mark.corpus,
    pytest.mark.skipif(not MODELS, reason=f"no third-party models at {CORPUS}: set ONNX_AUDIT_CORPUS to a folder that has some"),
]


def reading_of(shape: list[int | None]) -> InputSpec:
    """A reading that fits the shape; which scaling is no matter here."""
    sizes = [
        (h, w, c)
        for c in (3, 1)
        for h, w in ((shape[2], shape[3]) if len(shape) == 4 else (28, 28), (shape[1], shape[2]) if len(shape) == 4 else (32, 32))
        if h and w
    ]
    for h, w, c in sizes:
        try:
            return InputSpec.model_validate({"layout": layouts(shape, h, w, c)[0], "size": (h, w), "channels": "gray" if c == 1 else "RGB"})
        except ImagesRefused:
            continue
    pytest.skip(f"no pictures are known that fit {shape}")


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_parity_and_write_back(path: Path, folder: Path) -> None:
    copy = Path(shutil.copy(path, folder / "model.onnx"))
    try:
        facts = scan(copy).model
    except ModelRefused as error:
        assert len(str(error)) > 40 and str(error).isprintable()  # a sentence that says why
        return
    reading = reading_of(facts.input_shape)
    pictures = np.random.default_rng(0).random((2, *reading.size, reading.depth), np.float32)
    classifier = Classifier(copy, reading, device="cpu")
    scores = classifier(pictures)
    try:
        twin, _ = convert(copy, reading, facts)
        parity = compare(twin, scores, pictures)
    except ConversionFailed as error:
        if path.stem in CONVERTIBLE:
            raise
        pytest.skip(f"not convertible, and the audit says so: {error}")
    if not parity.holds and path.stem not in CONVERTIBLE:
        pytest.skip(f"the twin is {parity.max_relative_difference:.2g} away, and the audit says so")
    assert parity.max_relative_difference < 1e-5
    new = {name: (weight.value * 0.9).numpy() for name, weight in twin.weights.items()}
    try:
        files, _ = write_back(copy, ["model.onnx"], new, folder / "out")
    except AuditError as error:  # pragma: no cover
        pytest.fail(f"a bound weight could not be written back: {error}")
    assert set(differences(copy, files["model.onnx"])) <= set(new)
    with torch.no_grad():
        expected = twin.scores(torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy()), {name: torch.from_numpy(value) for name, value in new.items()}).numpy()
    assert relative_difference(Classifier(files["model.onnx"], reading, device="cpu")(pictures), expected).max() < 1e-3
