"""Every method with a complete card, on every layer it adapts: files of the reference load in upstream PEFT
and the other way round, and compute the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft_reference
import pytest
import torch
from peft_conformance.language import find_specs_dir, load_suite
from peft_conformance.models import build, make_input
from peft_conformance.ranges import contains
from peft_conformance.records import plain
from zoo import perturb

upstream = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")

SUITE = load_suite(find_specs_dir())
DIRECTIONS = [
    pytest.param(peft_reference, upstream, id="to-upstream"),
    pytest.param(upstream, peft_reference, id="from-upstream"),
]
# (method, layer) -> why upstream computes something else there; each is a known failure in the suite, too
DIFFERS = {
    ("lokr", "one-conv1d"): "the Kronecker product is scrambled",
    **dict.fromkeys(
        [(f"oft{point}", "one-conv2d") for point in ("", "-exact", "-shared", "-blocks", "-coft")],
        "overlapping patches of the input are added up, until the adapter is merged",
    ),
    ("trainable_tokens", "one-linear"): "the layer forgets its bias until the adapter is merged",
    **dict.fromkeys(
        [
            ("randlora-unsaved", f"one-{layer}")
            for layer in ("linear", "linear-biasless", "conv1d-transposed")
        ],
        "bases that are drawn again are rounded to bfloat16 there, and exact here",
    ),
}
# what upstream cannot hold where the tests run
REFUSED = {"boft-butterfly": "upstream has one factor only where it cannot compile its CUDA extension"}


def pairs() -> Iterator[Any]:
    """Each method, at each point of its card, with each single layer that it adapts there."""
    for name in SUITE.set_values("law-configs"):
        if name in REFUSED:
            continue
        made: Any = SUITE.method(name)
        for model in SUITE.sets["lora-layers"]["values"]:
            kind = SUITE.models[model]["chain"][0][1]
            since = made.card.get("layers_since", {}).get(kind, ">=0")
            if kind in made.fact("layers") and contains(since, upstream.__version__):
                yield pytest.param(name, model, id=f"{name}-{model}")


def config(implementation: Any, name: str) -> Any:
    """What the suite's cases use, as this implementation's config."""
    made: Any = SUITE.method(name)

    def value(field: Any) -> Any:
        if not (isinstance(field, dict) and field.keys() == {"public"}):
            return plain(field)  # what YAML was read into is copied by no dataclass
        found = implementation
        for part in field["public"].split("."):
            found = getattr(found, part)
        return found

    fields = {key: value(field) for key, field in made.options().items()}
    return getattr(implementation, made.card["config"]["class"])(target_modules=["layer"], **fields)


def fresh(model: str) -> Any:
    return build(SUITE.models[model]).eval()


@pytest.mark.parametrize(("method", "layer"), list(pairs()))
@pytest.mark.parametrize(("writer", "reader"), DIRECTIONS)
def test_files_mean_the_same(writer: Any, reader: Any, method: str, layer: str, tmp_path: Path) -> None:
    made: Any = SUITE.method(method)
    for package in made.card.get("packages", ()):
        pytest.importorskip(package)
    model = writer.get_peft_model(fresh(layer), config(writer, method)).eval()
    for name, parameter in model.named_parameters():
        if "ranknum" in name:  # bookkeeping, which upstream trains where the base is not float32
            parameter.requires_grad_(False)
    perturb(model)
    model.save_pretrained(tmp_path)
    loaded = reader.PeftModel.from_pretrained(fresh(layer), tmp_path)
    one, two = writer.get_peft_model_state_dict(model), reader.get_peft_model_state_dict(loaded)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) and one[key].dtype == two[key].dtype for key in one)
    (x,) = make_input(SUITE.models[layer]).values()
    if made.fact("forward_arguments"):  # upstream takes sequences, and not in every PeftModel
        with_tasks = {"task_ids": torch.tensor([0, 2, 1, 1, 0])}
        expected, got = (m.eval().base_model(x[:, None], **with_tasks) for m in (model, loaded))
    else:
        expected, got = model(x), loaded(x)
    if (method, layer) in DIFFERS:
        assert not torch.allclose(got, expected, rtol=1e-4, atol=1e-5), "it is no exception any more"
        return
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    has_bias = getattr(fresh(layer).layer, "bias", None) is not None
    if made.fact("mergeable") and (has_bias or made.card.get("merge_needs") != "bias"):
        whole = model.merge_and_unload()(x)
        torch.testing.assert_close(loaded.merge_and_unload()(x), whole, rtol=1e-4, atol=1e-5)
