"""The probe that compares a module's gradients with the slope of its loss."""

import torch
from torch import nn

from speclock.audits.gradients import blocked_gradients
from speclock.models import wrap
from speclock.tasks.base import Task


class InSinglePrecision(nn.Linear):
    """Computes in fp32 whatever it is given, as the norms of a Llama do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x.float(), self.weight.float(), self.bias.float()).to(x.dtype)


class Detached(InSinglePrecision):
    """The same, with a weight that no gradient reaches."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x.float(), self.weight.detach().float(), self.bias.float()).to(x.dtype)


def blocked(task: Task, first: type[nn.Linear]) -> list[str] | None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 1, 1), nn.Flatten(), first(784, 16), nn.Tanh(), nn.Linear(16, len(task.labels))
    )
    return blocked_gradients(
        wrap(
            module,
            labels=task.labels,
        ),
        task,
    )


def test_rounding_of_a_module_that_computes_in_fp32_is_not_taken_for_a_hidden_gradient(digits: Task) -> None:
    # At the smaller of the two steps a difference of losses is nothing but fp32's rounding here.
    assert blocked(digits, InSinglePrecision) == []
    assert blocked(digits, Detached) == ["2.weight"]


class Bag(nn.Module):
    """Reads a fixed word and padding, neither masked."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(4, 784, padding_idx=0)
        self.read = nn.Conv2d(1, 1, 1)
        self.head = nn.Linear(784, 10)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x = self.read(pixel_values).flatten(1) + self.words(torch.tensor([0, 1])).sum(0)
        return self.head(torch.tanh(x))


def test_a_padding_words_missing_gradient_is_no_trick(digits: Task) -> None:
    torch.manual_seed(0)
    bag = Bag()
    with torch.no_grad():
        bag.words.weight[0] = 0.3
    assert blocked_gradients(wrap(bag, labels=digits.labels), digits) == []
