"""Spectral deformation in a training loop of your own: one call for the penalty, and no speclock elsewhere."""

import torch
from torch import nn

import speclock

ALPHA = 0.5


def main(steps: int = 60) -> None:
    digits = speclock.tasks.load("mnist@2000/1000")
    images = torch.from_numpy(digits.train.inputs).permute(0, 3, 1, 2).float() / 255
    labels = torch.from_numpy(digits.train.labels)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    penalty = speclock.SpectralPenalty(model, top_k=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(steps):
        rows = torch.randint(len(images), (64,))
        retain = nn.functional.cross_entropy(model(images[rows]), labels[rows])
        sigma = penalty()  # the mean of the top two singular values of every weight matrix
        optimizer.zero_grad()
        (ALPHA * retain - (1 - ALPHA) * sigma).backward()
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step}: loss {retain.item():.2f}, mean top σ {sigma.item():.2f}")


if __name__ == "__main__":
    main()
