"""Frozen suites: which attacks an audit runs, so that two people's numbers compare.

A suite that has been published never changes; a better one gets the next version number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from speclock.attacks.average import Average
from speclock.attacks.balance import Balance
from speclock.attacks.base import Attack
from speclock.attacks.chain import Chain
from speclock.attacks.compress import Prune, Quantise
from speclock.attacks.distill import Distill
from speclock.attacks.finetune import FineTune
from speclock.attacks.fuse import Fuse
from speclock.attacks.heal import Heal
from speclock.attacks.kick import Kick
from speclock.attacks.lora import LoRA
from speclock.attacks.probe import Probe
from speclock.attacks.repair import Clip, Merge, Reinitialise, RestoreSigma, Shrink
from speclock.attacks.reset import ResetUnits
from speclock.attacks.unshrink import UndoShrinkage
from speclock.audits.record import UNINFORMED


@dataclass(frozen=True)
class Family:
    """An attack whose learning rate is searched, or a list of its rates that is not."""

    attacks: tuple[Attack, ...]
    """Where the search starts, the likeliest first: one attack at rates a decade apart, or one without a rate."""
    searched: bool = True
    """Whether rates beyond and between the given ones are tried; version 1 of the suites lists all of its own."""
    reach: int = 2
    """Decades beyond the given rates that are tried to both sides while nothing learns."""

    @property
    def name(self) -> str:
        """The attack in a few words, but for its learning rate."""
        return self.attacks[0].label

    @property
    def informed(self) -> bool:
        """Whether the attacker does more than fine-tune."""
        return self.attacks[0].kind not in UNINFORMED


def around(attack: type[FineTune], middle: float, **settings: Any) -> Family:
    """A search that starts at a rate, a tenth and ten times of it; AdamW decays as in the paper (B.2)."""
    if settings.setdefault("optimizer", "adamw") == "adamw":
        settings.setdefault("weight_decay", 0.01)
    return Family(tuple(attack(lr=rate, **settings) for rate in (middle, middle / 10, middle * 10)))


SCRATCH = (around(FineTune, 3e-4), around(FineTune, 1e-1, optimizer="sgd-momentum"))
"""What training from scratch is searched over: an untrained network needs larger rates than a trained one."""


@dataclass(frozen=True)
class Suite:
    """Families of attacks in the order in which they are tried, and how their best are run again."""

    name: str
    version: int
    steps: int
    """Budget of each run, in optimizer steps from the first label on, where the user gives none."""
    families: tuple[Family, ...]
    finalists: int = 2
    """Families whose best configuration runs again under every seed, those most promising that is, with the best
    uninformed and the best informed one always among them."""
    scratch: tuple[Family, ...] = SCRATCH
    """What training from scratch is searched over."""
    student: bool = False
    """Whether a student of the base's outputs is attacked too."""
    extended: bool = True
    """Whether the finals run again with twice the budget where one on the locked model still rises."""

    @property
    def label(self) -> str:
        """Name and version, as a record quotes them."""
        return f"{self.name}/{self.version}"

    @property
    def attacks(self) -> tuple[Attack, ...]:
        """Every attack that is listed, family by family."""
        return tuple(attack for family in self.families for attack in family.attacks)


def listed(*attacks: Attack) -> tuple[Family, ...]:
    """Families of attacks that differ by their rate alone, and whose rates are those of the list."""
    groups: dict[str, list[Attack]] = {}
    for attack in attacks:
        groups.setdefault(attack.label, []).append(attack)
    return tuple(Family(tuple(group), searched=False) for group in groups.values())


def _sweep(optimizer: str, *rates: float, **settings: Any) -> tuple[Attack, ...]:
    return tuple(FineTune(optimizer=optimizer, lr=lr, **settings) for lr in rates)


def _adamw(attack: type[FineTune], *rates: float, **settings: Any) -> tuple[Attack, ...]:
    """An attack with AdamW as the paper sets it (B.2) at each of the rates."""
    return tuple(attack(optimizer="adamw", lr=lr, weight_decay=0.01, **settings) for lr in rates)


# The likeliest winners come first. AdamW decays as in the paper
# (B.2); Adam, which differs from it by that alone, fills in the rates between.
QUICK_1 = Suite(
    name="quick",
    version=1,
    steps=32,
    finalists=1,
    families=listed(
        *_sweep("adamw", 3e-4, 1e-4, 1e-3, 3e-5, 3e-3, weight_decay=0.01),
        *_sweep("adam", 2e-4, 6e-4),
        *_sweep("sgd-momentum", 1e-2, 1e-1),
        *_sweep("adadelta", 1.0, 1e-1),
        *(Clip(optimizer="adamw", lr=lr, weight_decay=0.01) for lr in (3e-4, 1e-4)),
    ),
)

_MIDDLE = (3e-4, 1e-3, 1e-4, 3e-3)
"""Rates around AdamW's best, from pretrained transformers to small networks; a best on the edge is flagged."""

# Every attack that there was, each over three rates or more.
STANDARD_1 = Suite(
    name="standard",
    version=1,
    steps=48,
    finalists=3,
    families=listed(
        # Optimizer × learning rate.
        *_adamw(FineTune, *_MIDDLE, 3e-5, 1e-2, 1e-5, 1e-6, 1e-1, 1e-7, 1e-8),
        *_sweep("adam", 2e-4, 6e-4, 6e-5),
        *_sweep("sgd-momentum", 1e-1, 1e-2, 1.0, 1e-3),
        *_sweep("sgd", 1.0, 1e-1, 1e-2, 1e-3),
        *_sweep("sgd-nesterov", 1e-1, 1e-2, 1.0),
        *_sweep("adadelta", 1.0, 1e-1, 10.0),
        *_sweep("adagrad", 3e-3, 1e-2, 1e-3),
        *_sweep("rmsprop", 1e-4, 1e-3, 1e-5),
        *_sweep("adafactor", 1e-2, 1e-1, 1e-3),
        *_sweep("lion", 1e-4, 3e-4, 3e-5),
        *_sweep("muon", 1e-3, 1e-2, 1e-4),
        *_sweep("lamb", 1e-3, 1e-2, 1e-4),
        *_sweep("lars", 1e-3, 1e-2, 1e-4),
        *_sweep("sam", *_MIDDLE),
        *_sweep("natural-gradient", *_MIDDLE),
        # Preconditioners and second order.
        *_sweep("shampoo", 1e-2, 1e-1, 1e-3),
        *_sweep("soap", *_MIDDLE),
        *_sweep("kron", *_MIDDLE),
        *_sweep("xmat", 1e-2, 1e-1, 1e-3),
        *_sweep("sophia", 1e-2, 1e-1, 1e-3),
        *_sweep("adahessian", 1e-2, 1e-1, 1e-3),
        *_sweep("lbfgs", 1.0, 1e-1, 1e-2, clip=None),
        *_sweep("zeroth-order", 1e-4, 1e-5, 1e-6, clip=None, dropout=False),
        # Knobs.
        *_adamw(FineTune, *_MIDDLE, dropout=False),
        *_adamw(FineTune, *_MIDDLE, clip=None),
        *_adamw(FineTune, *_MIDDLE, clip=0.1),
        *_adamw(FineTune, *_MIDDLE, warmup=8),
        *_adamw(FineTune, *_MIDDLE, batch_size=4),
        *_adamw(FineTune, *_MIDDLE, batch_size=64),
        *_adamw(FineTune, *_MIDDLE, parameters="all-but-norms"),
        *_adamw(FineTune, *_MIDDLE, batch_statistics=False),
        *_adamw(FineTune, *_MIDDLE, precision="bf16"),
        *_adamw(FineTune, *_MIDDLE, layer_rates="spectral"),
        *_sweep("sgd-momentum", 1e-1, 1e-2, 1.0, layer_rates="spectral"),
        *_sweep("sgd", 1.0, 1e-1, 1e-2, temperature=1e-8, clip=None),
        # Few parameters.
        *_adamw(LoRA, 1e-3, 1e-2, 1e-4),
        *_adamw(LoRA, 1e-3, 1e-2, 1e-4, layers="unlocked"),
        *_adamw(FineTune, 1e-2, 1e-3, 1e-1, parameters="norms"),
        *_adamw(FineTune, 1e-2, 1e-3, 1e-1, parameters="biases"),
        *_adamw(FineTune, 1e-2, 1e-3, 1e-1, parameters="head"),
        # Surgery, then fine-tuning.
        *_adamw(Clip, *_MIDDLE),
        *_adamw(Clip, *_MIDDLE, rank=2),
        *_adamw(Clip, *_MIDDLE, rank=32),
        *_adamw(Clip, *_MIDDLE, heal=8),
        *_adamw(Shrink, *_MIDDLE),
        *_adamw(Balance, *_MIDDLE),
        *_adamw(Fuse, *_MIDDLE),
        *_adamw(Chain, *_MIDDLE),
        *_adamw(Chain, *_MIDDLE, factors=3),
        *_adamw(Chain, *_MIDDLE, factors=5),
        *_adamw(Reinitialise, *_MIDDLE),
        *_adamw(Reinitialise, *_MIDDLE, heal=8),
        *_adamw(Quantise, *_MIDDLE),
        *_adamw(Quantise, *_MIDDLE, bits=4),
        *_adamw(Quantise, *_MIDDLE, bits=4, heal=8),
        *_adamw(Prune, *_MIDDLE),
        *_adamw(Prune, *_MIDDLE, heal=8),
        *_adamw(RestoreSigma, *_MIDDLE),
        *_adamw(Merge, *_MIDDLE),
        # Distillation.
        *_adamw(Distill, *_MIDDLE),
        *_adamw(Distill, *_MIDDLE, student="public"),
    ),
)

# Version 2. Each family's rates are searched from three a decade apart; budgets count from the first label on.
QUICK = Suite(
    name="quick",
    version=2,
    steps=16,
    scratch=SCRATCH[:1],
    families=(
        around(FineTune, 1e-4),
        around(FineTune, 1e-4, batch_statistics=False),
        around(Clip, 1e-4),
        around(Heal, 1e-4, healing=16),
        Family((Probe(),)),
    ),
)

STANDARD = Suite(
    name="standard",
    version=2,
    steps=32,
    finalists=3,
    student=True,
    families=(
        # By optimizer: first order, trust ratios, orthogonalised, preconditioned, second order.
        around(FineTune, 1e-4),
        around(FineTune, 1e-2, optimizer="sgd-momentum"),
        around(FineTune, 1e-2, optimizer="adafactor"),
        around(FineTune, 1e-3, optimizer="lamb"),
        around(FineTune, 1e-3, optimizer="muon"),
        around(FineTune, 1e-3, optimizer="soap"),
        around(FineTune, 1e-3, optimizer="kron"),
        around(FineTune, 1e-2, optimizer="xmat"),
        around(FineTune, 1e-1, optimizer="lbfgs", clip=None),
        # By knob.
        around(FineTune, 1e-4, dropout=False),
        around(FineTune, 1e-4, batch_statistics=False),
        around(FineTune, 1e-4, batch_size=64),
        around(FineTune, 1e-4, layer_rates="spectral"),
        around(FineTune, 1e-4, embedding_rate=0.1),
        around(FineTune, 1e-4, precision="bf16"),
        around(Kick, 1e-4),
        # Few parameters.
        around(LoRA, 1e-3),
        around(FineTune, 1e-2, parameters="norms"),
        # Informed: heal, look inside, operate, copy.
        around(Heal, 1e-4),
        Family((Probe(),)),
        around(Clip, 1e-4),
        around(Clip, 1e-4, rank=32, heal=8),
        around(UndoShrinkage, 1e-4),
        around(UndoShrinkage, 1e-4, beta=0.5, denoise=False),
        around(ResetUnits, 1e-4),
        around(Balance, 1e-4),
        around(Fuse, 1e-4),
        around(Chain, 1e-4),
        around(Reinitialise, 1e-4, heal=8),
        around(Distill, 1e-3),
        # For who knows more than the file.
        around(Average, 1e-4),
        around(RestoreSigma, 1e-4),
        around(Merge, 1e-4),
        around(Distill, 1e-4, student="public"),
    ),
)

# A passage is a hundred labels, one a token: few of them are as many as a batch of posts has.
_FEW = 4

CAUSAL_LM = Suite(
    name="causal-lm",
    version=1,
    steps=32,
    scratch=(),  # What a fresh decoder learns of some dozens of passages, byte n-grams do better.
    families=(
        around(FineTune, 1e-4, batch_size=_FEW),
        around(LoRA, 1e-3, batch_size=_FEW),
        around(Clip, 1e-4, batch_size=_FEW),
        around(Shrink, 1e-4, batch_size=_FEW),
        around(Heal, 1e-4, healing=16, batch_size=_FEW),
    ),
)
