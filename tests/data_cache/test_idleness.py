"""Laws of idleness: a device idles while it is given nothing and has done all, not whenever the host waits."""

import pytest
import torch

from data_cache.idleness import IdleClock, find_marks


class Queue:
    """A device that works through what it is given, in order, behind the host's back; time passes as it is told to."""

    def __init__(self):
        self.now = self.done_at = 0.0

    def give(self, seconds):
        self.done_at = max(self.now, self.done_at) + seconds

    def put_mark(self):
        return Place(self, max(self.now, self.done_at))


class Place:
    def __init__(self, queue, at):
        self.queue, self.at = queue, at

    def query(self):
        return self.queue.now >= self.at

    def elapsed_time(self, end_event):
        assert self.query() and end_event.query(), "read before it was passed"
        return 1000 * (end_event.at - self.at)


@pytest.mark.parametrize(("fetch_s", "step_s", "idles_s"), [(9, 10, 0), (10, 10, 0), (10, 9, 1), (10, 1, 9)])
def test_a_device_idles_by_what_fetching_takes_longer_than_its_step(fetch_s, step_s, idles_s):
    """Also where the host waits nearly all of the time, because the device works behind its back."""
    queue = Queue()
    clock = IdleClock(queue.put_mark)
    queue.give(step_s)
    for _ in range(20):
        with clock.count():
            queue.now += fetch_s
        queue.give(step_s)
    queue.now = queue.done_at
    assert clock.seconds == pytest.approx(20 * idles_s)


def test_what_the_device_has_not_come_to_is_not_counted_yet():
    queue = Queue()
    clock = IdleClock(queue.put_mark)
    with clock.count():
        queue.now += 3
    queue.give(5)
    with clock.count():
        queue.now += 1
    assert clock.seconds == 3


def test_a_cpu_idles_as_long_as_the_block_takes(monkeypatch):
    monkeypatch.setattr("time.perf_counter", iter([1.0, 3.5]).__next__)
    clock = IdleClock(find_marks(torch.device("cpu")))
    with clock.count():
        pass
    assert clock.seconds == 2.5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_with_work_from_before_does_not_idle():
    device = torch.device("cuda:0")
    product = torch.randn(4096, 4096, device=device)
    clock = IdleClock(find_marks(device))
    for _ in range(100):
        product = product @ product
    started, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    started.record()
    with clock.count():
        ended.record()
    torch.cuda.synchronize()
    assert clock.seconds < 0.01
