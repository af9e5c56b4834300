"""What was known is kept: on rows of sources that say `keep: true`, the goal is what the model said before training.

A row of the old world is one sample of what the model could say there; learning it pulls towards that sample, and a
thousand small pulls leave another model. The distribution that the model had says all of it at once and pulls nowhere
until something is lost. (Z. Li and D. Hoiem 2016, "Learning without Forgetting", arXiv 1606.09282; here on rows of the
old tasks.) The model before is the one that is trained, its adapters switched off, or another checkpoint.
"""

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace

import torch
from peft import PeftModel
from transformers import PreTrainedModel


class Keeper:
    """In place of the model for TRL's loss, on packs with kept rows; sums by how much those have moved.

    Args:
        trained: without a teacher its adapters can be switched off.
        teacher: the model before, where that is another.
        meter: told the figures of the labels, on kept rows too.
    """

    def __init__(self, trained: PreTrainedModel | PeftModel, teacher: PreTrainedModel | None, meter: Callable):
        self.trained, self.teacher, self.meter = trained, teacher, meter
        self.sums = None  # [2]: nats, ids

    def __call__(self, model, kept: torch.Tensor, labels: torch.Tensor, fused_lm_head: bool, **inputs):
        """The fields of TRL's FusedCausalLMOutput that its loss reads, [1, L - 1]. On kept ids `log_probs`, and so the
        loss, is the cross-entropy to the model before, as often as the id counts.

        Args:
            model: `trained`, as the accelerator wraps it.
            kept: [1, L], how much an id of a kept row counts; 0 for the others.
            labels: [1, L], -100 where nothing is learned.
        """
        mask = labels[:, 1:] != -100
        places, goals = mask[0].nonzero()[:, 0], labels[:, 1:][mask]  # [N] each
        with torch.no_grad(), nullcontext() if self.teacher else self.trained.disable_adapter():
            # Kept rows alone: a row sees no other, and the pass costs what they cost.
            rows = {name: inputs[name][kept > 0][None] for name in ("input_ids", "position_ids")}
            moved_to = (kept[0] > 0).cumsum(0) - 1
            weights = kept[0, places]  # [N]
            kept = weights > 0
            output = (self.teacher or self.trained)(**rows, use_cache=False, logits_to_keep=moved_to[places[kept]])
            before = output.logits[0].float().log_softmax(-1)  # [kept, V]
        now = model(**inputs, logits_to_keep=places).logits[0].float().log_softmax(-1)  # [N, V]

        def spread(values: torch.Tensor) -> torch.Tensor:
            return values.new_zeros(mask.shape).masked_scatter(mask, values)

        likely = now.gather(-1, goals[:, None])[:, 0]
        output = SimpleNamespace(
            log_probs=spread(likely.detach()),
            entropy=spread(-(now.detach().exp() * now.detach()).sum(-1)),
            is_top1=spread(now.argmax(-1) == goals),
            label_mask=mask,
        )
        self.meter(self.trained, (), {"labels": labels}, output)
        wanted = before.exp()
        agreement = (wanted * now[kept]).sum(-1)
        moved = (wanted * before).sum() - agreement.detach().sum()
        sums = torch.stack([moved, kept.sum()])
        self.sums = sums if self.sums is None else self.sums + sums
        output.log_probs = spread(likely.masked_scatter(kept, weights[kept] * agreement))
        return output

    def read(self, accelerator) -> dict[str, float]:
        """`kept`: mean divergence from the model before since the last reading, in nats an id, over all processes."""
        sums = torch.zeros(2, device=accelerator.device) if self.sums is None else self.sums
        self.sums = None
        moved, ids = accelerator.reduce(sums, "sum").tolist()
        return {"kept": moved / ids} if ids else {}


def kept_positions(packs: list[dict], length: int) -> dict[str, torch.Tensor]:
    """`kept` of packs laid end to end, [1, length], 0 where there is padding; empty for packs that don't say."""
    if "kept" not in packs[0]:
        return {}
    kept = torch.tensor([kept for pack in packs for kept in pack["kept"]])
    return {"kept": torch.nn.functional.pad(kept, (0, length - len(kept)))[None]}
