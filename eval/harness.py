"""Text ability of a checkpoint or a plain backbone, by EleutherAI's lm-evaluation-harness.

  python eval/harness.py --model MODEL --tasks endings --include_path eval/tasks --out results.json [--text_only]
  python eval/harness.py --model MODEL --tasks hellaswag --limit 100

MODEL is a folder: an AnyGPT checkpoint, or any causal language model (also a GGUF file) to compare it with.
`--include_path` holds task files of the harness (YAML), for data of your own; eval/tasks has a small one. Needs: pip
install -e ".[harness]"
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout too

import torch  # noqa: E402
from console import check_count, run_script  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

import processing_anygpt  # noqa: F401, E402  registers the classes
from processing_anygpt.conversation import encode_text  # noqa: E402
from processing_anygpt.files import write_text  # noqa: E402
from serving_anygpt.grow import find_backbone, load_backbone  # noqa: E402

try:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
except ImportError as error:
    print(f"harness.py: error: {error}. Install the harness: pip install -e '.[harness]'", file=sys.stderr)
    sys.exit(2)


class AnyGPTLM(HFLM):
    """The harness's own wrapper, but that text spells no control or code tokens, and that code rows can be left out.

    Args:
        folder: checkpoint or backbone, or a GGUF file.
        text_only: the next token is known to be text: rows of codes and markers take no share of the softmax.
        device, batch_size: of the harness.
    """

    def __init__(self, folder: str, text_only: bool = False, device: str = "cpu", batch_size: int = 8):
        if (Path(folder) / "config.json").is_file():
            model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        else:  # a GGUF file, as `anygpt init` reads it
            model, tokenizer = load_backbone(find_backbone(folder))
        super().__init__(pretrained=model.to(device), tokenizer=tokenizer, backend="causal", batch_size=batch_size)
        self.media = media_rows(model.config)
        self.hidden = torch.tensor(sorted(self.media), dtype=torch.long, device=device) if text_only else None

    def tok_encode(self, string, *args, **kwargs):  # the harness's signature
        ids = super().tok_encode(string, *args, **kwargs)
        forged = isinstance(string, str) and not self.media.isdisjoint(ids)
        return encode_text(string, self.tokenizer) if forged else ids

    def _model_call(self, inps, *args, **kwargs):  # the harness's signature
        logits = super()._model_call(inps, *args, **kwargs)
        return logits if self.hidden is None else logits.index_fill(-1, self.hidden, float("-inf"))


def media_rows(config) -> set[int]:
    """Token ids that no text has: codes, the markers around them, and the roles and ends of conversations.

    The end of a reply counts only where it came with the roles; some backbones had an `<eos>` of their own before.
    """
    names = ("human", "assistant", "eoh", "instruction", "response")
    rows = {getattr(config, f"{name}_token_id", None) for name in names} - {None}
    if rows and config.eos_token_id > min(rows):
        rows.add(config.eos_token_id)
    for spec in getattr(config, "modalities", None) or []:
        if spec.first_code_id is not None:
            rows |= {*range(spec.first_code_id, spec.first_code_id + spec.num_codes)}
            rows |= {spec.start_token_id, spec.end_token_id}
    return rows


def evaluate(lm: AnyGPTLM, tasks: list[str], include_path: str | None = None, limit: int | None = None) -> dict:
    """{task: {metric: value}} of the harness."""
    manager = TaskManager(include_path=include_path)
    found = simple_evaluate(lm, tasks=tasks, task_manager=manager, limit=limit, bootstrap_iters=0, log_samples=False)
    return {
        name: {k: v for k, v in scores.items() if isinstance(v, float)} for name, scores in found["results"].items()
    }


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tasks", required=True, nargs="+")
    parser.add_argument("--include_path", help="folder of task files")
    parser.add_argument("--limit", type=int, help="items of each task")
    parser.add_argument("--text_only", action="store_true", help="leave codes out of the softmax")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--out", type=Path, help="JSON")
    args = parser.parse_args(argv)
    check_count("--limit", args.limit)
    check_count("--batch_size", args.batch_size)
    lm = AnyGPTLM(args.model, args.text_only, args.device, args.batch_size)
    results = evaluate(lm, args.tasks, args.include_path, args.limit)
    text = json.dumps({"model": args.model, "text_only": args.text_only, "results": results}, indent=1)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_text(args.out, text + "\n")


if __name__ == "__main__":
    run_script(main)
