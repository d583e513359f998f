"""Lock a module of your own and audit the lock: no folder, no command line."""

import torch
from torch import nn

import speclock
from speclock.recipe import TrainingRecipe
from speclock.training import train


def main(steps: int = 16) -> None:
    low = speclock.tasks.load("mnist:0,1,2,3,4@2000/1000")
    high = speclock.tasks.load("mnist:5,6,7,8,9@50/1000")
    torch.manual_seed(0)
    base = nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 12 * 12, 64),
        nn.ReLU(),
        nn.Linear(64, 5),
    )
    train(speclock.wrap(base, labels=low.labels), low, TrainingRecipe(optimizer="adam", lr=1e-3, epochs=2))
    locked = speclock.lock(base, low, speclock.SpecDef(alpha=0.5, top_k=1, lr=1e-3, epochs=1))
    print(f"utility {locked.card['utility_base']:.1%} → {locked.card['utility_locked']:.1%}")
    verdict = speclock.audit(base=base, locked=locked, retain=low, attack=high, steps=steps)
    print(verdict.verdict)
    for flag in verdict.flags:
        print(f"flag {flag.name}: {flag.why}")


if __name__ == "__main__":
    main()
