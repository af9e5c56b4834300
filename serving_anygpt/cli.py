"""The `anygpt` command.

anygpt generate --to speech "good morning" --voice me.wav      anygpt generate --to text question.wav
anygpt chat                                                     anygpt encode x.wav | anygpt decode --out y.wav
anygpt demo                                                     anygpt init --backbone DIR OUT
anygpt export --to vllm DIR OUT                                 anygpt convert --llm DIR ... OUT

Everything that loads torch is imported inside the command that needs it: `anygpt --help` has to start at once.
Results go to standard output, progress and errors to standard error. Exit code 2: the input or an option was wrong.
"""

import argparse
import os
import sys

from . import __version__, media

MOST_CANDIDATES = 64  # in one batch of the language model


class Parser(argparse.ArgumentParser):
    """Errors take one line, like every other error of this command."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def build_parser() -> Parser:
    parser = Parser(prog="anygpt", description="One language model for text, speech, images and music.")
    parser.add_argument("--version", action="version", version=f"anygpt {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--model", default=str(media.DEFAULT_MODEL), metavar="DIR", help="checkpoint (default: anygpt-tiny)"
    )
    scripts = argparse.ArgumentParser(add_help=False, parents=[common])
    scripts.add_argument("--json", action="store_true", help="a JSON object a line on standard output, no progress")

    generate = commands.add_parser(
        "generate",
        parents=[scripts],
        help="answer in one modality",
        epilog="INPUT: a file (sound, picture, .txt), plain text, or - for text from standard input. A sound is taken "
        "for speech; write music:FILE for music. Text beside a file is the instruction.",
    )
    generate.add_argument("inputs", nargs="+", metavar="INPUT")
    generate.add_argument("--to", required=True, metavar="MODALITY", help="text, speech, image or music")
    generate.add_argument("--as", dest="audio", metavar="MODALITY", help="what sound files are (default: speech)")
    generate.add_argument("--voice", metavar="WAV", help="speak like this recording (3 s are enough)")
    generate.add_argument(
        "--out", metavar="FILE", help="where the answer goes (default: answer.wav, answer.png; text is printed)"
    )
    generate.add_argument("--seed", type=natural, default=0, metavar="N", help="of the sampling (default: 0)")
    generate.add_argument(
        "--candidates",
        type=count,
        metavar="N",
        help="make N, keep the one from which the model best tells the request (default: the checkpoint's choice)",
    )
    generate.add_argument("--max-seconds", type=positive, metavar="S", help="longest sound to write")

    chat = commands.add_parser("chat", parents=[common], help="talk in the terminal")
    chat.add_argument("--out", default="out", metavar="DIR", help="where answers that are not text go (default: out)")
    chat.add_argument("--voice", metavar="WAV", help="the voice of spoken answers")
    chat.add_argument("--seed", type=natural, default=0, metavar="N")

    encode = commands.add_parser("encode", parents=[scripts], help="files to codes, a JSON object a line")
    encode.add_argument("files", nargs="+", metavar="FILE")
    encode.add_argument("--as", dest="audio", metavar="MODALITY", help="what sound files are (default: speech)")

    decode = commands.add_parser("decode", parents=[scripts], help="codes from standard input to files")
    decode.add_argument("--out", metavar="FILE", help="file, or folder for several (default: decoded.wav or .png)")
    decode.add_argument("--voice", metavar="WAV", help="the voice of decoded speech")
    decode.add_argument("--seed", type=natural, default=0, metavar="N")

    demo = commands.add_parser("demo", parents=[scripts], help="every task on the example files, as a web page")
    demo.add_argument("--out", default="out", metavar="DIR", help="where the page goes (default: out)")
    demo.add_argument("--examples", metavar="DIR", help="folder of the inputs (default: examples of the repository)")
    demo.add_argument("--seed", type=natural, default=0, metavar="N")

    init = commands.add_parser("init", help="grow a causal language model by the tokens of other modalities")
    init.add_argument(
        "--backbone", required=True, metavar="MODEL", help="folder, .gguf file, or hub id (which is downloaded)"
    )
    init.add_argument("out", metavar="OUT", help="the new model folder")
    init.add_argument("--modalities", metavar="A,B", help="of --like, in this order (default: all)")
    init.add_argument(
        "--like",
        default=str(media.DEFAULT_MODEL),
        metavar="DIR",
        help="AnyGPT folder that the modality table and the codecs come from (default: anygpt-tiny)",
    )
    init.add_argument("--seed", type=natural, default=0, metavar="N", help="of the new rows (default: 0)")
    init.add_argument(
        "--instructions", metavar="YAML", help="sentences it will be trained with (prepare_data.py), to ask it with"
    )

    convert = commands.add_parser("convert", help="the released AnyGPT weights into one model folder")
    convert.add_argument("--llm", required=True, metavar="DIR", help="AnyGPT-base or AnyGPT-chat, as downloaded")
    convert.add_argument(
        "--speech-tokenizer", required=True, metavar="DIR", help="config.json with ckpt.dev or SpeechTokenizer.pt"
    )
    convert.add_argument("--soundstorm", required=True, metavar="FILE", help="speechtokenizer_soundstorm_mls.pt")
    convert.add_argument("--seed", required=True, metavar="FILE", help="seed_quantizer.pt of SEED-2")
    convert.add_argument("--eva", required=True, metavar="FILE", help="eva_vit_g.pth, the eyes of SEED-2")
    convert.add_argument("--encodec", required=True, metavar="DIR|ID", help="Encodec 32 kHz: folder, or hub id")
    convert.add_argument(
        "--unclip", required=True, metavar="DIR|ID", help="Stable Diffusion 2.1 unCLIP: folder, or hub id"
    )
    convert.add_argument("--chat", action="store_true", help="refuse a base model (the vocabulary tells them apart)")
    convert.add_argument("--prompts", metavar="FILE", help="JSON with the system prompt and instruction sentences")
    convert.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="of the language model (default: as stored, float32 in the released one)",
    )
    convert.add_argument("out", metavar="OUT", help="the new model folder; an interrupted conversion is resumed")

    export = commands.add_parser("export", help="the language model as its backbone's own architecture")
    export.add_argument("folder", metavar="DIR", help="AnyGPT checkpoint")
    export.add_argument("out", metavar="OUT", help="the new model folder")
    export.add_argument(
        "--to",
        choices=("plain", "vllm"),
        default="plain",
        help="the same weights; for vllm without the length limits of generation_config.json (default: plain)",
    )
    export.add_argument("--adapter", metavar="DIR", help="LoRA adapter to merge first")
    return parser


def natural(text: str) -> int:
    """A seed: torch takes 64 bits."""
    value = int(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 2^63 - 1")
    return value


def count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= MOST_CANDIDATES:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and {MOST_CANDIDATES}")
    return value


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    return value


def run(arguments: argparse.Namespace) -> None:
    """Imports the command's module only now, and only after what can be checked without it has been checked."""
    if arguments.command == "init":
        from .grow import init
        from .progress import only_ours

        only_ours()
        names = None if arguments.modalities is None else arguments.modalities.split(",")
        print(init(arguments.backbone, arguments.out, names, arguments.like, arguments.seed, arguments.instructions))
        return
    if arguments.command == "convert":
        from .convert import convert

        files = (arguments.llm, arguments.speech_tokenizer, arguments.soundstorm, arguments.seed, arguments.eva)
        others = (
            arguments.encodec,
            arguments.unclip,
            arguments.out,
            arguments.chat,
            arguments.prompts,
            arguments.dtype,
        )
        print(convert(*files, *others))
        return
    if arguments.command == "export":
        from .export import export
        from .progress import only_ours

        only_ours()
        print(export(arguments.folder, arguments.out, arguments.to, arguments.adapter))
        return
    config = media.model_config(arguments.model)
    if arguments.command == "generate":
        request = check_generate(arguments, config)
        from .generate import generate

        generate(arguments, config, request)
    elif arguments.command == "chat":
        if arguments.voice:
            media.check_modality("speech", config)
            media.existing(arguments.voice)
        media.writable_folder(arguments.out, create=True)
        from .chat import chat

        chat(arguments, config)
    elif arguments.command == "demo":
        media.writable_folder(arguments.out, create=True)
        from .demo import demo

        demo(arguments, config)
    elif arguments.command == "encode":
        audio = heard_as(arguments.audio, config)
        blocks = [media.as_block(file, modality_names(config), audio) for file in arguments.files]
        for file, block in zip(arguments.files, blocks, strict=True):
            if block["type"] == "text":
                raise ValueError(f"Cannot encode {file!r}: not a sound or picture file.")
            media.check_modality(block["type"], config, text=False)
        from .codes import encode

        encode(arguments, blocks)
    else:
        if arguments.voice:
            media.existing(arguments.voice)
        from .codes import decode

        decode(arguments, config, sys.stdin)


def check_generate(arguments: argparse.Namespace, config: dict) -> list[dict]:
    """The content blocks of the inputs; ValueError for whatever can be known to be wrong without the model."""
    row = media.check_modality(arguments.to, config)
    audio = heard_as(arguments.audio, config)
    if arguments.voice:
        if not row.get("sampling_rate") or not (row.get("decoder") or arguments.to == "speech"):
            raise ValueError(f"--voice is for answers that are spoken, not for --to {arguments.to}.")
        media.existing(arguments.voice)
    if arguments.candidates and not row:
        raise ValueError("--candidates is for answers that can be shown back to the model, not for --to text.")
    if arguments.max_seconds and not row.get("sampling_rate"):
        raise ValueError(f"--max-seconds is for answers that are heard, not for --to {arguments.to}.")
    if arguments.out is None and row:
        arguments.out = f"answer{media.default_suffix(row)}"
    if arguments.out is not None:
        media.check_writable(arguments.out, row)
    values = [read_input() if value == "-" else value for value in arguments.inputs]
    blocks = [media.as_block(value, modality_names(config), audio) for value in values]
    for block in blocks:
        media.check_modality(block["type"], config)
    return blocks


def heard_as(audio: str | None, config: dict) -> str:
    """What a sound file is that does not say: `audio`, else speech, or what else the model hears."""
    if audio is not None:
        media.check_modality(audio, config, text=False)
        return audio
    heard = [row["name"] for row in config["modalities"] if row.get("sampling_rate")]
    return media.usual_sound(heard) or "speech"  # which a model that hears nothing does not know


def read_input() -> str:
    try:
        text = sys.stdin.read()
        text.encode()  # bytes that are no UTF-8 may have come through as surrogates
    except UnicodeError as error:
        raise ValueError(f"Standard input is not UTF-8 text ({error.reason}).") from None
    return text


def modality_names(config: dict) -> list[str]:
    return [row["name"] for row in config["modalities"]]


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    # A program may start us without some of the streams, which Python then leaves out.
    sys.stdin, sys.stderr = sys.stdin or open(os.devnull), sys.stderr or open(os.devnull, "w")
    arguments = build_parser().parse_args(argv)
    try:
        if sys.stdout is None:
            raise ValueError("Standard output is closed, and results go there.")
        run(arguments)
    except (ValueError, OSError, ImportError) as error:
        if arguments.debug:
            raise
        if isinstance(error, BrokenPipeError):  # the reader of our output has left: `anygpt encode ... | head`
            sys.stdout = open(os.devnull, "w")
            return 1
        print(f"anygpt: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
