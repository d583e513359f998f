"""Judge a lock: the same attacks on base, scratch, control and locked model, and what follows from them."""

from __future__ import annotations

from speclock.registry import Registry

SUITES = Registry(
    "suite",
    {
        "quick": (
            "speclock.audits.suite:QUICK",
            "fine-tuning, σ clipping, healing, probes; rates searched; 16 steps",
        ),
        "standard": (
            "speclock.audits.suite:STANDARD",
            "some thirty families of attacks, rates searched, and the student; 32 steps",
        ),
        "causal-lm": (
            "speclock.audits.suite:CAUSAL_LM",
            "for language models: fine-tuning, LoRA, σ clipping and shrinking, healing; rates searched; 32 steps",
        ),
        "quick/1": ("speclock.audits.suite:QUICK_1", "thirteen attacks with listed rates; 32 steps"),
        "standard/1": ("speclock.audits.suite:STANDARD_1", "228 attacks with listed rates; 48 steps"),
    },
)
