import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def _one_thread():
    """Small matrices gain nothing from threads, and lose much to waiting where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
