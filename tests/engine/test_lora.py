"""LoRA files in every spelling change the same weights in the same way."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from engine import lora
from engine.errors import CheckpointError
from engine.upstream import diffusers_name
from tests.engine.conftest import TOY, random_dit

WEIGHTS = random_dit(replace(TOY, subject_layers=0), seed=2).state_dict()
TARGETS = ("blocks.0.self_attn.q", "blocks.1.cross_attn.o", "blocks.2.ffn.0", "head.head")
RANK = 4


def halves(seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for target in TARGETS:
        rows, columns = WEIGHTS[f"{target}.weight"].shape
        found[target] = (
            torch.randn(RANK, columns, generator=generator),
            torch.randn(rows, RANK, generator=generator),
        )
    return found


def diffusers_target(target: str) -> str:
    return "transformer." + diffusers_name(f"{target}.weight").removesuffix(".weight")


SPELLINGS: dict[str, tuple[Callable[[str], str], str, str]] = {
    "peft": (lambda t: f"base_model.model.{t}", "lora_A.weight", "lora_B.weight"),
    "peft-named": (
        lambda t: f"base_model.model.{t}",
        "lora_A.default.weight",
        "lora_B.default.weight",
    ),
    "comfy": (lambda t: f"diffusion_model.{t}", "lora_down.weight", "lora_up.weight"),
    "diffusers": (diffusers_target, "lora_A.weight", "lora_B.weight"),
    "diffusers-old": (diffusers_target, "lora.down.weight", "lora.up.weight"),
    "diffsynth": (lambda t: f"pipe.dit.{t}", "lora_A.default.weight", "lora_B.default.weight"),
    "lycoris": (
        lambda t: "lycoris_" + t.replace(".", "_"),
        "lora_down.weight",
        "lora_up.weight",
    ),
    "kohya-diffusers": (
        lambda t: "lora_unet_" + diffusers_target(t).removeprefix("transformer.").replace(".", "_"),
        "lora_down.weight",
        "lora_up.weight",
    ),
    "kohya": (
        lambda t: "lora_unet_" + t.replace(".", "_"),
        "lora_down.weight",
        "lora_up.weight",
    ),
}


def file_of(spelling: str, alpha: float | None = None) -> dict[str, Tensor]:
    rename, down, up = SPELLINGS[spelling]
    tensors = {}
    for target, (a, b) in halves().items():
        tensors[f"{rename(target)}.{down}"], tensors[f"{rename(target)}.{up}"] = a, b
        if alpha is not None:
            tensors[f"{rename(target)}.alpha"] = torch.tensor(alpha)
    return tensors


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("alpha", [None, 2.0])
def test_every_spelling_is_the_formula(spelling: str, alpha: float | None) -> None:
    merged = lora.merge(WEIGHTS, lora.adapters(file_of(spelling, alpha), WEIGHTS), strength=0.5)
    scale = 0.5 * (1.0 if alpha is None else alpha / RANK)
    for name, value in WEIGHTS.items():
        target = name.removesuffix(".weight")
        if name.endswith(".weight") and target in TARGETS:
            a, b = halves()[target]
            torch.testing.assert_close(merged[name], value + scale * b @ a)
        else:
            assert merged[name] is value


def test_differences_are_added_as_they_are() -> None:
    """To norms, biases and convolutions too, beside the adapters of the same file."""
    names = {
        "blocks.0.self_attn.norm_q.weight": "diffusion_model.blocks.0.self_attn.norm_q.diff",
        "blocks.0.self_attn.q.bias": "diffusion_model.blocks.0.self_attn.q.diff_b",
        "patch_embedding.weight": "diffusion_model.patch_embedding.diff",
        "blocks.1.cross_attn.k.weight": "transformer.blocks.1.attn2.to_k.diff",
    }
    more = {key: torch.randn(WEIGHTS[name].shape) for name, key in names.items()}
    plain = lora.merge(WEIGHTS, lora.adapters(file_of("comfy"), WEIGHTS), strength=0.5)
    merged = lora.merge(WEIGHTS, lora.adapters(file_of("comfy") | more, WEIGHTS), strength=0.5)
    for name, value in merged.items():
        change = 0.5 * more[names[name]] if name in names else 0
        torch.testing.assert_close(value, plain[name] + change)


def test_strength_zero_changes_nothing_and_precision_stays() -> None:
    half = {name: value.bfloat16() for name, value in WEIGHTS.items()}
    merged = lora.merge(half, lora.adapters(file_of("peft"), half), strength=0.0)
    assert all(torch.equal(merged[name], value) for name, value in half.items())
    assert all(value.dtype == torch.bfloat16 for value in merged.values())


def test_what_peft_writes_is_read() -> None:
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    dit = random_dit(replace(TOY, subject_layers=0), seed=2)
    x, text = torch.randn(1, 16, 1, 4, 4), torch.randn(1, 10, 20)
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["q", "k", "v", "o"])
    adapted = get_peft_model(dit, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    wanted = adapted(x, torch.tensor([0.5]), text)
    merged = lora.merge(
        WEIGHTS, lora.adapters(get_peft_model_state_dict(adapted), WEIGHTS)
    )
    plain = random_dit(replace(TOY, subject_layers=0))
    plain.load_state_dict(merged)
    torch.testing.assert_close(plain(x, torch.tensor([0.5]), text), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_model.model.blocks.9.ffn.0.lora_A.weight": torch.ones(2, 2)}, "belongs to no"),
        ({"base_model.model.blocks.0.ffn.0.diff": torch.ones(2, 2)}, "another width"),
        ({"base_model.model.blocks.0.ffn.0.diff_b": torch.ones(2)}, "another width"),
        ({"base_model.model.blocks.0.diff_m": torch.ones(2)}, "kind of change"),
        ({"base_model.model.head.head.diff": torch.ones(64, 48)}, "adapted twice"),
        ({"base_model.model.blocks.0.norm9.diff": torch.ones(2)}, "belongs to no"),
        ({"base_model.model.head.head.alpha": torch.ones(2)}, "must be one number"),
        (
            {
                "base_model.model.head.head.lora_A.weight": torch.ones(0, 48),
                "base_model.model.head.head.lora_B.weight": torch.ones(64, 0),
            },
            "another width",
        ),
        ({"base_model.model.head.head.lora_A.weight": torch.ones(RANK, 7)}, "another width"),
        ({"base_model.model.head.head.lora_B.weight": None}, "only one half"),
        ({"base_model.model.head.head.lora_A.weight": torch.full((4, 48), torch.inf)}, "finite"),
        ({"diffusion_model.head.head.lora_A.weight": torch.ones(4, 48)}, "adapted twice"),
    ],
)
def test_a_file_for_another_model_is_refused(
    change: dict[str, Tensor | None], message: str
) -> None:
    tensors = {k: v for k, v in {**file_of("peft"), **change}.items() if v is not None}
    with pytest.raises(CheckpointError, match=message):
        lora.adapters(tensors, WEIGHTS)


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(CheckpointError, match="no adapters"):
        lora.adapters({}, WEIGHTS)


def test_alpha_from_our_own_header_and_from_pefts_configuration(tmp_path: Path) -> None:
    tensors = {name: value.contiguous() for name, value in file_of("peft").items()}
    ours, bare = tmp_path / "ours.safetensors", tmp_path / "bare" / "adapter_model.safetensors"
    save_file(tensors, ours, {"rank": str(RANK), "scale": "2.0"})
    bare.parent.mkdir()
    save_file(tensors, bare)
    assert lora.declared_alpha(bare) is None
    (bare.parent / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 8}')
    for path in (ours, bare, bare.parent):
        assert lora.declared_alpha(path) == 8.0
    found = lora.adapters(tensors, WEIGHTS, alpha=8.0)
    a, b = halves()[TARGETS[0]]
    torch.testing.assert_close(found[f"{TARGETS[0]}.weight"].delta(), 2 * b @ a)


@pytest.mark.parametrize(
    ("content", "message"),
    [("[]", "not the configuration"), ('{"lora_alpha": 8, "use_rslora": true}', "use_rslora is")],
)
def test_a_configuration_that_cannot_be_followed(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        lora.declared_alpha(tmp_path / "adapter_model.safetensors")


def test_a_strength_that_overflows_is_told() -> None:
    half = {name: value.half() for name, value in WEIGHTS.items()}
    with pytest.raises(CheckpointError, match="at strength 1e\\+06 makes"):
        lora.merge(half, lora.adapters(file_of("peft"), half), strength=1e6)
