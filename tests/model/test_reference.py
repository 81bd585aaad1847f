"""The PyTorch reference: torchscale's encoder with adapters where the authors put them."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from cases import ALL
from configs import CONFIGS

from mwa_export.errors import MissingPackageError
from mwa_export.model.reference import (
    ReferenceModel,
    reference_from_tensors,
    training_only_packages,
)
from mwa_export.model.synthetic import random_tensors


@pytest.mark.parametrize("name", ALL)
def test_reference_computes_what_is_right(name: str) -> None:
    case = ALL[name]()
    reference = reference_from_tensors(case.model.config, case.model.tensors)
    with torch.inference_mode():
        vision = reference.encode_image(torch.from_numpy(case.image))
        ids, mask = torch.from_numpy(case.token_ids), torch.from_numpy(case.padding_mask)
        text = reference.encode_text(ids, mask)
    assert np.abs(vision.numpy() - case.vision).max() <= 2e-6
    assert np.abs(text.numpy() - case.text).max() <= 2e-6


def test_reference_runs_torchscales_own_encoder() -> None:
    model = ReferenceModel(CONFIGS["mwa"])
    layer = model.beit3.encoder.layers[0]
    assert type(model.beit3).__module__ == "torchscale.model.BEiT3"
    assert type(layer).__module__ == "torchscale.architecture.encoder"
    assert "forward" not in vars(layer)


def test_reference_shares_memory_with_float32_tensors() -> None:
    tensors = random_tensors(CONFIGS["mwa"])
    reference = reference_from_tensors(CONFIGS["mwa"], tensors)
    name = "beit3.encoder.layers.0.ffn.A.fc1.weight"
    assert reference.get_parameter(name).data_ptr() == tensors[name].data_ptr()


def test_untrained_adapters_add_nothing_and_can_be_trained() -> None:
    config = CONFIGS["norm_in_learned"]
    model = ReferenceModel(config)
    image, ids = torch.rand(2, 3, 32, 32), torch.randint(4, 90, (2, 5))
    out = torch.cat(model(image, ids, torch.zeros_like(ids)))
    out.square().mul(torch.arange(out.shape[1])).sum().backward()  # type: ignore[no-untyped-call]  # torch
    layer = model.beit3.encoder.layers[0]
    assert torch.count_nonzero(layer.adaptmlp_text.up_proj.weight) == 0
    assert layer.adaptmlp_text.up_proj.weight.grad is not None
    assert torch.count_nonzero(layer.adaptmlp_text.up_proj.weight.grad) > 0


@pytest.mark.slow
def test_stand_ins_are_gone_after_the_import() -> None:
    code = (
        "import sys, torch\n"
        "from mwa_export.model.reference import _torchscale\n"
        "_torchscale()\n"
        "for name in ('fairscale', 'fairscale.nn', 'timm', 'timm.models'):\n"
        "    module = sys.modules.get(name)\n"
        "    assert module is None or module.__file__, name\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_packages_that_import_are_used_instead_of_stand_ins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed = {
        name: ModuleType(name) for name in ("fairscale", "fairscale.nn", "timm", "timm.models")
    }
    for name, module in installed.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "timm.models.layers", raising=False)
    with training_only_packages():
        assert sys.modules["fairscale.nn"] is installed["fairscale.nn"]
        assert not hasattr(installed["fairscale.nn"], "wrap")
        with pytest.raises(MissingPackageError):
            sys.modules["timm.models.layers"].drop_path()  # a part that does not import
    assert sys.modules["timm.models"] is installed["timm.models"]
    assert "timm.models.layers" not in sys.modules


def test_training_only_options_fail_with_their_reason() -> None:
    from mwa_export.model.reference import _not_for_inference

    with pytest.raises(MissingPackageError, match=r"timm\.models\.layers\.drop_path"):
        _not_for_inference("timm.models.layers.drop_path")(1)
