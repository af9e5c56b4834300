"""Inputs of the command line -> the messages of one request.

The wording of an instruction is the training data's (`INSTRUCTIONS` of processing_anygpt.tiny_world.language) for the
embedded checkpoint, and a plain sentence for any other.
"""

from processing_anygpt.media import load_audio
from processing_anygpt.tiny_world.language import INSTRUCTIONS

GENERAL_INSTRUCTIONS = {
    ("speech", "text"): ["Transcribe this recording."],
    ("text", "speech"): ["Read this aloud: {text}"],
    ("image", "text"): ["Describe this picture."],
    ("text", "image"): ["Draw a picture of this: {text}"],
    ("music", "text"): ["Describe this music."],
    ("text", "music"): ["Compose music like this: {text}"],
}
VOICE_SECONDS = 1.0  # of the voice prompt, heard by the language model


def compose(blocks: list[dict], to: str, instructions: dict = INSTRUCTIONS) -> list[dict]:
    """The content of the user's turn that asks for `to`, from the INPUTs in their order.

    Media and text: the text is the instruction, taken as it is. Media alone: the default instruction of its type;
    without one (a spoken request for a picture, say) the media speaks for itself. Text alone: the default instruction
    filled with it, unless the text is phrased as one already ("draw a red circle").
    """
    media = [block for block in blocks if block["type"] != "text"]
    texts = [block["text"] for block in blocks if block["type"] == "text"]
    if media and texts:
        return blocks
    if media:
        wording = instructions.get((media[0]["type"], to), [])
        return [{"type": "text", "text": line} for line in wording[:1]] + media
    text = " ".join(texts)
    wording = instructions.get(("text", to), ["{text}"])
    openings = [line.partition("{text}")[0].strip().lower() for line in wording]
    if any(opening and text.lower().startswith(f"{opening} ") for opening in openings):
        return [{"type": "text", "text": text}]
    return [{"type": "text", "text": wording[0].format(text=text)}]


def voice_block(path: str, sampling_rate: int) -> dict:
    """The first second of a voice prompt as a speech block: what tells the language model who is to speak."""
    waveform = load_audio(path, sampling_rate)[: round(VOICE_SECONDS * sampling_rate)]
    return {"type": "speech", "audio": waveform, "sampling_rate": sampling_rate}
