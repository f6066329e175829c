import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Models this small only lose time to handing work between threads, all of it on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
