"""What the commands make with the embedded checkpoint, and the parts of the demo page."""

import base64
import io
import json
import re

import numpy as np
import pytest
import soundfile
from PIL import Image

from processing_anygpt.tiny_world.language import INSTRUCTIONS
from serving_anygpt import chat, cli, demo, media
from serving_anygpt.requests import compose
from serving_anygpt.spectrogram import spectrogram


@pytest.fixture
def output_of(anygpt):
    """Runs a command that has to succeed: its standard output."""

    def run(arguments: str | list[str], stdin: str = "") -> str:
        code, output, error = anygpt(arguments, stdin)
        assert code == 0, error
        return output

    return run


def test_generate_text(output_of, files):
    record = json.loads(output_of("generate --json --to text --out heard.txt tone.wav"))
    assert record["file"] == "heard.txt" and record["tokens"][0] > 50
    assert (files / "heard.txt").read_text() == record["text"] + "\n"


def test_generate_image_from_standard_input(output_of, files):
    assert output_of("generate --to image -", "a big red circle\n") == "answer.png\n"
    first = (files / "answer.png").read_bytes()
    assert Image.open(io.BytesIO(first)).size == (64, 64)
    output_of(["generate", "--to", "image", "--out", "again.png", "a big red circle"])
    assert (files / "again.png").read_bytes() == first  # same words, same seed


def test_generate_speech_in_a_voice(output_of, files):
    output_of("generate --to speech --voice tone.wav --max-seconds 0.5 --out said.flac words.txt")
    waveform, rate = soundfile.read(files / "said.flac")
    assert rate == 16000 and 0 < len(waveform) / rate <= 0.52


def test_generate_music_for_a_recording(output_of, files):
    """A recording without text is a spoken request; the reply may hold what the model heard, and must hold music."""
    record = json.loads(output_of("generate --json --to music --max-seconds 0.4 --out tune.wav tone.wav"))
    assert record["to"] == "music"
    assert soundfile.info(files / "tune.wav").duration <= 0.45


def test_encode_then_decode(output_of, files):
    lines = output_of("encode tone.wav music:tone.wav red.png")
    records = [json.loads(line) for line in lines.splitlines()]
    assert [record["modality"] for record in records] == ["speech", "music", "image"]
    assert [np.array(record["codes"]).shape for record in records] == [(1, 50), (2, 25), (1, 64)]
    names = output_of("decode --out back", lines).split()
    assert names == ["back/1_tone.wav", "back/2_tone.wav", "back/3_red.png"]
    assert soundfile.info(files / names[0]).duration == pytest.approx(1.0, abs=0.05)
    pixels = np.asarray(Image.open(files / names[2]).convert("RGB")).astype(int)
    red, green, blue = pixels[28:36, 28:36].mean((0, 1))
    assert red > 2 * green and red > 2 * blue
    assert pixels[:8, :8].mean() > 220  # the paper stays white
    assert output_of("decode", lines.splitlines()[2]) == "decoded.png\n"


def test_chat(output_of, files):
    """Files in, files out, a mistake in between that does not end the conversation."""
    lines = ["/image red.png", "what is in this picture", "/image nothing.png", "/to image", "draw a red star", "/new"]
    output = output_of("chat --out said", "\n".join([*lines, "/to film", "/help", "/quit", "never reached"]))
    assert "Added red.png" in output and "A new conversation." in output and "/voice FILE" in output
    assert "never reached" not in output
    (picture,) = (files / "said").iterdir()
    assert picture.suffix == ".png" and f"said/{picture.name}" in output


def test_a_second_chat_keeps_the_answers_of_the_first(output_of, files):
    for picture in ("a red star", "a blue circle"):
        output_of("chat --out said", f"/to image\ndraw {picture}")
    assert sorted(path.name.split("_")[1] for path in (files / "said").iterdir()) == ["1", "2"]


def test_a_chat_stops_when_nobody_reads_it(monkeypatch, files):
    def gone(*arguments, **options):
        raise BrokenPipeError

    monkeypatch.setattr("sys.stdin", io.StringIO("/new\n/new\n"))
    monkeypatch.setattr("builtins.print", gone)
    with pytest.raises(BrokenPipeError):
        chat.chat(cli.build_parser().parse_args(["chat"]), media.model_config(media.DEFAULT_MODEL))


@pytest.mark.parametrize(
    ("blocks", "to", "expected"),
    [
        ([("text", "a red star")], "image", [("text", "draw a red star")]),
        ([("text", "show me a red star")], "image", [("text", "show me a red star")]),
        ([("text", "good"), ("text", "morning")], "speech", [("text", "read this aloud good morning")]),
        ([("text", "how are you")], "text", [("text", "how are you")]),
        ([("speech", "x.wav")], "text", [("text", INSTRUCTIONS["speech", "text"][0]), ("speech", "x.wav")]),
        ([("speech", "x.wav")], "image", [("speech", "x.wav")]),
        ([("image", "x.png"), ("text", "why")], "text", [("image", "x.png"), ("text", "why")]),
        (
            [("image", "x.png"), ("text", "describe this picture")],
            "text",
            [("text", "describe this picture"), ("image", "x.png")],
        ),
    ],
)
def test_compose(blocks, to, expected):
    def block(kind, value):
        return {"type": kind, "text" if kind == "text" else "path": value}

    assert compose([block(*b) for b in blocks], to) == [block(*b) for b in expected]


@pytest.mark.parametrize("typed", ["read this aloud zero two", "Read this aloud: zero two"])
def test_a_request_that_is_phrased_already_stays(typed):
    """By any checkpoint's wording, with the colon or without."""
    (asked,) = compose([{"type": "text", "text": typed}], "speech", {("text", "speech"): ["Read this aloud: {text}"]})
    assert asked["text"] == typed


def test_braces_are_words():
    (asked,) = compose([{"type": "text", "text": "{a} {text}"}], "image", {("text", "image"): ["Draw {it}: {text}"]})
    assert asked["text"] == "Draw {it}: {a} {text}"


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")

    def write(temporary):
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        media.write_atomic(path, write)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_spectrogram_shows_a_tone_where_it_is():
    time = np.arange(16000) / 16000
    low, high = (spectrogram(np.sin(2 * np.pi * f * time), 16000).sum(2).mean(1).argmax() for f in (300, 3000))
    assert high < low  # high notes are at the top
    assert 0.75 < low / 128 < 0.9  # 300 Hz lies at 0.16 of the mel scale from 60 to 8000 Hz
    assert len(np.unique(spectrogram(np.zeros(16000), 16000).reshape(-1, 3), axis=0)) == 1


def test_demo_page_is_self_contained(output_of, files, monkeypatch):
    tasks = [
        demo.Task("Hear", "text", ("tone.wav",), expected="<b>nothing</b>"),
        demo.Task("Draw", "image", ("draw a red star",)),
        demo.Task("See", "text", ("red.png",)),
    ]
    monkeypatch.setattr(demo, "TASKS", tasks)
    assert output_of("demo --examples . --out page") == "page/index.html\n"
    page = (files / "page" / "index.html").read_text(encoding="utf-8")
    assert all(f"</span> {task.title} <" in page for task in tasks)
    assert "&lt;b&gt;nothing" in page
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 4 and all(source.startswith("data:") for source in sources)
    sound = next(source for source in sources if source.startswith("data:audio/wav"))
    assert soundfile.info(io.BytesIO(base64.b64decode(sound.split(",")[1]))).duration == 1.0
    assert "anygpt generate --to image &#39;draw a red star&#39;" in page


def test_the_demo_of_a_model_that_only_sees():
    shown = {task.title for task in demo.TASKS if demo.modalities_of(task, demo.REPOSITORY_EXAMPLES) <= {"image"}}
    assert shown == {"Describe a picture", "Draw a picture"}


def test_every_file_of_the_demo_is_in_examples():
    for task in demo.TASKS:
        names = [value for value in (*task.inputs, task.voice or "") if "." in value]
        for name in names:
            assert (demo.REPOSITORY_EXAMPLES / name.rpartition(":")[2]).is_file(), name
