"""Judges of speech that this project did not train.

  python eval/judge_speech.py --codec-table --data data/speech/codes_heldout

pocketsphinx writes down what it hears, held to the tiny world's grammar ("closed") or free to use any English word
("open"); Resemblyzer says whose voice it is; DNSMOS guesses how a listener would rate it (1 to 5). All take float32
[T], 16 kHz, mono, in [-1, 1].

Needs: pip install pocketsphinx jiwer Resemblyzer speechmos

A closed grammar flatters: it can only answer with sentences of the world. Report it beside the open one, and beside
what the same judge makes of the original recording.
"""

import argparse
import functools

import numpy as np
from console import run_script

from processing_anygpt.tiny_world import language

RATE = 16_000  # Hz
PEAK = 0.9


# ---------------------------------------------------------------- words


def transcribe(wave: np.ndarray, language_model: str = "closed") -> str:
    """What pocketsphinx hears in `wave` [T]; "" if it hears nothing. One utterance does not influence the next.

    Args:
        language_model: "closed" (sentences of the tiny world only) or "open" (its general English trigram model).
    """
    recogniser, samples = _recogniser(language_model), to_int16(wave)
    if len(samples) < RATE // 10:  # no word is this short, and the recogniser needs a few frames
        return ""
    recogniser.start_utt()
    recogniser.process_raw(samples.tobytes(), full_utt=True)
    recogniser.end_utt()
    heard = recogniser.hyp()
    return heard.hypstr if heard else ""


@functools.cache
def _recogniser(language_model: str):
    from pocketsphinx import Decoder

    if language_model not in ("closed", "open"):
        raise ValueError(f"Got language model {language_model!r}; allowed are 'closed' and 'open'.")
    # Batch normalisation looks at one utterance alone; the default carries its estimate on to the next.
    if language_model == "open":
        return Decoder(loglevel="FATAL", cmn="batch")
    recogniser = Decoder(lm=None, loglevel="FATAL", cmn="batch")
    recogniser.add_jsgf_string("tiny", language.jsgf())
    recogniser.activate_search("tiny")
    return recogniser


def grammar_accepts(sentence: str) -> bool:
    """Whether the closed grammar can write `sentence` down at all."""
    return bool(_recogniser("closed").get_fsg("tiny").accept(sentence))


def word_error_rate(said: list[str], heard: list[str]) -> float:
    """Words wrong, missing and extra over words said, of all sentences together; 0 is perfect, above 1 is possible.

    Raises:
        ValueError: lists of different lengths, none at all, or an empty sentence in `said`.
    """
    import jiwer

    if len(said) != len(heard) or not said:
        raise ValueError(f"Got {len(said)} sentences said and {len(heard)} heard; give as many of each, at least one.")
    if not all(sentence.split() for sentence in said):
        raise ValueError("A sentence in `said` is empty; its errors would have nothing to be divided by. Remove it.")
    return jiwer.wer(said, heard)


def to_int16(wave: np.ndarray) -> np.ndarray:
    """float32 [T] in any scale -> int16 [T] with peak 0.9, so that loudness is not judged. Silence stays silence."""
    wave = np.asarray(wave, np.float32)
    if wave.ndim != 1 or not np.isfinite(wave).all():
        raise ValueError(f"Got audio of shape {wave.shape}, finite: {np.isfinite(wave).all()}; give finite mono [T].")
    return np.round(wave * (32767 * PEAK / max(np.abs(wave).max(initial=0), 1e-4))).astype(np.int16)


# ---------------------------------------------------------------- voices


def speaker_embedding(wave: np.ndarray) -> np.ndarray:
    """Resemblyzer's embedding of the speaker of `wave` [T] -> float32 [256], length 1."""
    from resemblyzer import normalize_volume

    return _speaker_encoder().embed_utterance(normalize_volume(wave, -30, increase_only=True))


@functools.cache
def _speaker_encoder():
    from resemblyzer import VoiceEncoder

    return VoiceEncoder("cpu", verbose=False)


def voice_centroids(waves: list[np.ndarray], labels: list[str]) -> dict[str, np.ndarray]:
    """One mean embedding (float32 [256], length 1) per voice; a few seconds of each voice are enough."""
    embeddings = np.stack([speaker_embedding(wave) for wave in waves])
    means = {label: embeddings[np.array(labels) == label].mean(0) for label in sorted(set(labels))}
    return {label: mean / np.linalg.norm(mean) for label, mean in means.items()}


def nearest_voice(wave: np.ndarray, centroids: dict[str, np.ndarray]) -> str | None:
    """The voice whose centroid has the largest cosine to the speaker of `wave` [T]; None of silence."""
    if not wave.any():
        return None
    embedding = speaker_embedding(wave)
    return max(centroids, key=lambda voice: float(centroids[voice] @ embedding))


# ---------------------------------------------------------------- sound


def dnsmos(wave: np.ndarray) -> float:
    """DNSMOS P.835 overall quality of `wave` [T], 1 (bad) to 5 (excellent). Audio under 9 s is repeated."""
    from speechmos import dnsmos as model

    return float(model.run(to_int16(wave) / np.float32(32768), sr=RATE)["ovrl_mos"])


# ---------------------------------------------------------------- the codec alone


def codec_table(data: str, codec, limit: int) -> list[dict]:
    """Judge held-out recordings before and after the codec, one row a voice and one for all.

    Half of each voice's utterances make the centroids, the other half are judged (at most `limit` a voice).
    """
    import soundfile
    import torch

    table = np.load(f"{data}.npz")
    audio, _ = soundfile.read(f"{data}.flac", dtype="float32")
    waves = np.split(audio, table["sample_offsets"][1:-1])
    codes = np.split(table["codes"].astype(np.int64), table["offsets"][1:-1], axis=1)
    labels, texts = table["voice"].tolist(), table["text"].tolist()
    centroids = voice_centroids(waves[1::2], labels[1::2])

    rows = []
    print("| voice | version | closed WER | open WER | nearest voice right | DNSMOS |\n|---|---|---|---|---|---|")
    for voice in dict.fromkeys(labels):
        for i in [i for i in range(0, len(labels), 2) if labels[i] == voice][:limit]:
            versions = {"original": waves[i]}
            for levels in (8, 1):
                decoded = codec.decode(torch.from_numpy(codes[i][None, :levels]))[0]
                versions[f"{levels} levels"] = decoded.numpy()[: len(waves[i])]
            for version, wave in versions.items():
                heard = {kind: transcribe(wave, kind) for kind in ("closed", "open")}
                right = nearest_voice(wave, centroids) == voice
                rows.append(dict(voice=voice, version=version, said=texts[i], right=right, mos=dnsmos(wave), **heard))
        print_rows(rows, voice)
    print_rows(rows, "all")
    return rows


def print_rows(rows: list[dict], voice: str):
    """One line of the codec table per version (original, 8 levels, 1 level) of `voice`, or of "all" of them."""
    for version in dict.fromkeys(row["version"] for row in rows):
        chosen = [row for row in rows if row["version"] == version and voice in (row["voice"], "all")]
        said = [row["said"] for row in chosen]
        closed, open_ = (word_error_rate(said, [row[kind] for row in chosen]) for kind in ("closed", "open"))
        right, mos = (np.mean([row[name] for row in chosen]) for name in ("right", "mos"))
        print(f"| {voice} | {version} | {closed:.3f} | {open_:.3f} | {right:.2f} | {mos:.2f} |", flush=True)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec-table", action="store_true", required=True, help="judge the codec on held-out speech")
    parser.add_argument(
        "--data", required=True, help="held-out .npz and .flac of train/make_speech_data.py, no suffix"
    )
    parser.add_argument("--codec", default="modeling_anygpt/pretrained/anygpt_tiny/speech_codec")
    parser.add_argument("--limit", type=int, default=20, help="utterances judged per voice")
    args = parser.parse_args(argv)

    from modeling_anygpt.codecs.speech_tokenizer import SpeechTokenizerModel

    codec_table(args.data, SpeechTokenizerModel.from_pretrained(args.codec).eval(), args.limit)


if __name__ == "__main__":
    run_script(main)
