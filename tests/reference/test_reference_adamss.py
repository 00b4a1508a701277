"""AdaMSS, whose clusters come from scikit-learn: what it needs, and that its files are upstream's."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import peft_reference
import pytest
import torch
from torch import nn
from zoo import MLP, build, perturb


def test_without_scikit_learn_there_is_no_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="scikit-learn"):
        peft_reference.AdamssConfig()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("to_upstream", [True, False])
@pytest.mark.parametrize(("r", "clusters", "rank"), [(4, 2, 1), (3, 3, 2), (100, 5, 1)])
def test_files_mean_the_same(to_upstream: bool, r: int, clusters: int, rank: int, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    upstream: Any = pytest.importorskip("peft")
    writer, reader = (peft_reference, upstream) if to_upstream else (upstream, peft_reference)
    config = writer.AdamssConfig(
        r=r, num_subspaces=clusters, subspace_rank=rank, random_seed=1, target_modules=["lin0", "lin1"]
    )
    x = torch.randn(5, 8)
    base: nn.Module = build(MLP)
    model = writer.get_peft_model(build(MLP), config)
    torch.testing.assert_close(model(x), base(x))
    perturb(model)
    model.save_pretrained(tmp_path)
    loaded = reader.PeftModel.from_pretrained(build(MLP), tmp_path)
    one, two = writer.get_peft_model_state_dict(model), reader.get_peft_model_state_dict(loaded)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    expected = model(x)
    torch.testing.assert_close(loaded(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loaded.merge_and_unload()(x), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected, base(x))
