"""Tokenizer, configuration and first weights of anygpt-tiny. Part of make_tiny_data.py's `model` step."""

import random
from pathlib import Path

from codebook_init import initialise
from settings import read_yaml_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from modeling_anygpt import AnyGPTConfig, ModalitySpec
from processing_anygpt.tiny_world import language
from processing_anygpt.vocabulary import add_modality_tokens


def make_model_folder(recipe: Path, folder: Path, codecs: Path):
    size, text_config, modalities = read_recipe(recipe)
    tokenizer = text_tokenizer(size)
    modalities = add_modality_tokens(tokenizer, modalities)
    text_config |= {"vocab_size": len(tokenizer)}
    config = AnyGPTConfig(text_config=text_config, modalities=modalities)
    config.assign_token_ids(tokenizer)
    initialise(config, codecs).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"{folder}: {len(tokenizer)} tokens")


def read_recipe(path: Path) -> tuple[int, dict, list[ModalitySpec]]:
    """Text tokens, the backbone's configuration and the modality table of a YAML file."""
    recipe = read_yaml_file(path)
    try:
        modalities = [ModalitySpec(**row) for row in recipe["modalities"]]
        return int(recipe["text_vocabulary"]), dict(recipe["text_config"]), modalities
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path} is no recipe of a model ({error}). See configs/tiny_model.yaml.") from error


def text_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE over the tiny world's sentences; `<pad>` is 0."""
    rng = random.Random(0)
    texts = [language.sample_spoken(rng) for _ in range(4000)]
    texts += [
        " " + i.format(text=language.expand("picture", rng)) for i in sum(language.INSTRUCTIONS.values(), [])
    ] * 9
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=["<pad>"], initial_alphabet=sorted(alphabet))
    backend.train_from_iterator(texts + [" " + text for text in texts], trainer)
    missing = size - backend.get_vocab_size()
    if missing:
        print(f"the sentences fill {size - missing} of {size} text tokens")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", padding_side="left",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
