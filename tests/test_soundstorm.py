"""SoundStorm against the outputs of AnyGPT's copy of it, and its training loss."""

import math

import pytest
import torch
from goldens_io import GOLDENS, load_goldens, read_json
from transformers import AutoModel

from modeling_anygpt.codecs import SoundStormConfig, SoundStormModel
from modeling_anygpt.codecs.soundstorm import rotary_angles
from modeling_anygpt.conversion.soundstorm import load_official

CASES = read_json("soundstorm", "cases.json")


@pytest.fixture(scope="module")
def goldens():
    return load_goldens("soundstorm")[0]


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    path = tmp_path_factory.mktemp("official") / "soundstorm.pt"
    torch.save(load_goldens("soundstorm")[1], path)
    return path


@pytest.fixture(scope="module")
def model(official):
    return load_official(official, num_attention_heads=4)


def close(actual, expected, stride=1):
    torch.testing.assert_close(actual[..., ::stride], expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_forward_equals_official(model, goldens):
    semantic, acoustic = goldens["fw_semantic"], goldens["fw_tokens"].view(2, 30, 7)
    close(model(semantic, acoustic).flatten(1, 2), goldens["fw_logits"], stride=4)
    mask = goldens["fw_mask_padded"]
    assert not mask.all()
    close(model(semantic, acoustic, mask).flatten(1, 2), goldens["fw_logits_padded"], stride=4)
    hidden = model.net(acoustic, model.semantic_token_emb(semantic), None)
    states = torch.stack([model.net.level_states(hidden, level) for level in range(7)], 2)
    close(states.flatten(1, 2), goldens["fw_embeds"], stride=4)


@torch.no_grad()
def test_conformer_equals_official(model, goldens):
    x, block = goldens["conf_in"], model.net.conformer.layers[0]
    angles = rotary_angles(30, 16, x.device)
    close(angles, goldens["rotary_freqs"])
    close(model.net.conformer(x, None), goldens["conf_out"])
    close(block(x, None, (angles.cos(), angles.sin())), goldens["blk0_out"])


@pytest.mark.parametrize("case", CASES)
def test_generate_equals_official(model, goldens, case):
    """The same codes, and on the way there the same inputs of the network at every pass."""
    settings, inputs = CASES[case], []
    hook = model.net.register_forward_pre_hook(lambda _, args: inputs.append(args[0].flatten(1)))
    prompt = goldens["gen_prompt"] if settings["prompt"] else None
    codes = model.generate(
        goldens["gen_semantic"],
        prompt,
        steps=settings["steps"],
        greedy=settings["greedy"],
        generator=torch.Generator().manual_seed(settings["seed"]),
    )
    hook.remove()
    assert torch.equal(codes, goldens[f"{case}.out"])
    assert torch.equal(torch.stack(inputs), goldens[f"{case}.net_inputs"].long())
    if case == "gen_prompt_steps1_greedy":
        assert torch.equal(codes[..., 1:], goldens[f"{case}_nocat.out"])


def test_stored_draws_are_those_of_this_torch(goldens):
    """The golden cases are seeds: should a later torch draw other numbers, this tells."""
    generator = torch.Generator().manual_seed(CASES["gen_noprompt_steps4_sample"]["seed"])
    draws = [torch.empty(2, 210, 64).uniform_(generator=generator) for _ in range(2)]
    assert torch.equal(draws[1][..., ::16], goldens["gen_noprompt_steps4_sample.uniform1"])


def test_full_configuration_has_the_official_tensors():
    full = read_json("soundstorm", "full.json")
    with torch.device("meta"):
        model = SoundStormModel(SoundStormConfig())
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == full["shapes"]
    assert model.num_parameters() == full["n_params"]


def test_configuration_comes_from_the_shapes(model):
    assert (model.config.hidden_size, model.config.num_hidden_layers, model.config.head_dim) == (48, 3, 16)
    assert (model.config.codebook_size, model.config.num_quantizers, model.config.conv_kernel_size) == (64, 7, 31)


def test_foreign_official_file_is_refused(official, tmp_path):
    weights = torch.load(official, weights_only=True)
    weights["net.extra"] = weights.pop("net.heads.0.bias")
    torch.save(weights, tmp_path / "renamed.pt")
    with pytest.raises(ValueError, match=r"1 missing \(net.heads.0.bias\), 1 unknown \(net.extra\)"):
        load_official(tmp_path / "renamed.pt", num_attention_heads=4)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="no SoundStorm"):
        load_official(tmp_path / "other.pt")
    with pytest.raises(ValueError, match="Got 7 heads, allowed divisors of the attention width 64"):
        load_official(official, num_attention_heads=7)


def test_saved_model_loads_with_auto_classes(model, goldens, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, SoundStormModel)
    assert torch.equal(loaded.generate(goldens["gen_semantic"]), goldens["gen_noprompt_steps1_greedy.out"])


def tiny(**settings) -> SoundStormModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8, "conv_kernel_size": 3}
    config = SoundStormConfig(num_semantic_codes=8, codebook_size=8, num_quantizers=3, **sizes, **settings)
    return SoundStormModel(config).eval()


@pytest.mark.parametrize("steps, greedy", [(1, True), (3, True), (3, False)])
def test_paper_decoding_keeps_prompt_and_semantics(steps, greedy):
    model, inputs = tiny(paper_decoding=True), []
    model.net.register_forward_pre_hook(lambda _, args: inputs.append(args[0].clone()))
    semantic, prompt = torch.randint(8, (2, 10)), torch.randint(8, (2, 4, 4))
    codes = model.generate(semantic, prompt, steps, greedy, torch.Generator().manual_seed(0))
    assert torch.equal(codes[..., 0], semantic) and codes.max() < 8
    assert len(inputs) == steps + 2
    for i, seen in enumerate(inputs):
        assert torch.equal(seen[:, :4], prompt[..., 1:])
        level = max(0, i - steps + 1)  # the level that this pass fills
        masked = (seen[:, 4:] == 8).float().mean((0, 1))
        assert (masked[level + 1 :] == 1).all() and (masked[:level] == 0).all()
        expected = math.floor(math.cos(math.pi / 2 * i / steps) * 10) / 10 if level == 0 else 1
        assert masked[level] == pytest.approx(expected)
    again = model.generate(semantic, prompt, steps, greedy, torch.Generator().manual_seed(0))
    assert torch.equal(again, codes)


def test_known_vectors_give_the_code_of_least_expected_error():
    """Torn between two far codes, it takes the one in the middle, which itself is not likely."""
    model = tiny(paper_decoding=True, code_dimension=1)
    model.code_vectors.copy_(torch.tensor([-9.0, 9, 0.5, 30, 30, 30, 30, 30]).view(1, 8, 1).expand(3, 8, 1))
    with torch.no_grad():
        model.net.to_logits["2"].weight.zero_()
        model.net.to_logits["2"].bias.fill_(-20)[..., :2] = 0
    assert (model.generate(torch.zeros(1, 4, dtype=torch.long))[..., 1:] == 2).all()


def test_loss_masks_what_it_says():
    """Row 0 trains level 1 with half of it masked, row 1 level 0 fully masked; prompts and padding stay."""
    model, seen = tiny(), []
    model.net.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    codes = torch.randint(8, (2, 40, 4))
    mask = torch.ones(2, 40, dtype=torch.bool)
    mask[1, 35:] = False
    arguments = {"prompt_length": torch.tensor([10, 5]), "attention_mask": mask}
    result = model.loss(codes, **arguments, levels=torch.tensor([1, 0]), mask_ratio=torch.tensor([0.5, 1.0]))
    hidden = seen[0] == model.config.mask_id
    assert torch.equal(seen[0][~hidden], codes[..., 1:][~hidden])
    assert not hidden[0, :10].any() and not hidden[1, :5].any() and not hidden[1, 35:].any()
    assert not hidden[0, :, 0].any() and 5 < hidden[0, 10:, 1].sum() < 25 and hidden[0, 10:, 2].all()
    assert hidden[1, 5:35].all()
    # The mean cross-entropy of exactly those codes.
    wanted = hidden.clone()
    wanted[0, :, 2] = wanted[1, :, 1:] = False
    with torch.no_grad():
        logits = model(codes[..., 0], seen[0], mask)[wanted]
    expected = torch.nn.functional.cross_entropy(logits, codes[..., 1:][wanted])
    torch.testing.assert_close(result.loss.detach(), expected)
    assert result.accuracy == (logits.argmax(-1) == codes[..., 1:][wanted]).float().mean()


def test_padding_changes_nothing():
    model, codes, prompt = tiny(), torch.randint(8, (1, 12, 4)), torch.tensor([3])
    arguments = {"levels": torch.tensor([0]), "mask_ratio": torch.ones(1)}
    plain = model.loss(codes, prompt, **arguments)
    padded = torch.cat((codes, torch.zeros(1, 6, 4, dtype=torch.long)), 1)
    mask = torch.arange(18)[None] < 12
    torch.testing.assert_close(model.loss(padded, prompt, mask, **arguments).loss, plain.loss)


@pytest.mark.parametrize(
    "semantic, prompt, message",
    [
        (torch.zeros(1, 0, dtype=torch.long), None, r"Got semantic codes of shape \[1, 0\]"),
        (torch.zeros(5, dtype=torch.long), None, r"Got semantic codes of shape \[5\], allowed \[B, n\]"),
        (torch.zeros(1, 5), None, "Got semantic codes of torch.float32, allowed int64"),
        (torch.full((1, 5), 8), None, "Got semantic codes from 8 to 8, allowed 0 to 7"),
        (torch.zeros(1, 5, dtype=torch.long), torch.zeros(2, 5, 4, dtype=torch.long), r"allowed \[1, P, 4\]"),
        (torch.zeros(1, 5, dtype=torch.long), torch.zeros(1, 5, 3, dtype=torch.long), r"allowed \[1, P, 4\]"),
        (torch.zeros(1, 5, dtype=torch.long), torch.full((1, 5, 4), -1), "from -1 to -1, allowed 0 to 7"),
    ],
)
def test_bad_inputs_are_refused(semantic, prompt, message):
    with pytest.raises(ValueError, match=message):
        tiny().generate(semantic, prompt)


def test_bad_steps_and_levels_are_refused():
    for steps in (0, 1.5):
        with pytest.raises(ValueError, match=f"Got steps={steps}, allowed whole numbers, 1 or more"):
            tiny().generate(torch.zeros(1, 5, dtype=torch.long), steps=steps)
    with pytest.raises(ValueError, match="Got 3 levels of codes, allowed 4"):
        tiny().loss(torch.zeros(1, 5, 3, dtype=torch.long), torch.zeros(1))


def test_embedded_model_fits_the_speech_codec():
    folder = GOLDENS.parents[1] / "modeling_anygpt" / "pretrained" / "anygpt_tiny"
    model, codec = AutoModel.from_pretrained(folder / "soundstorm"), AutoModel.from_pretrained(folder / "speech_codec")
    assert model.dtype == torch.float32
    assert model.config.codebook_size == model.config.num_semantic_codes == codec.config.codebook_size
    assert model.config.num_quantizers + 1 == codec.config.num_codebooks
    codes = model.generate(torch.randint(1024, (1, 20)), torch.randint(1024, (1, 30, 8)))
    assert codec.decode(codes.transpose(1, 2)).shape == (1, 20 * 320)
