"""What a training uses, over its tries and the processes below it."""

import subprocess
import sys

from pipelines.registry.usage import Meter, Usage, money

BURN = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"


def test_processes_below_count(tmp_path):
    """Processor time of children counts while they live and after they ended; memory is that of the whole tree."""
    meter = Meter(tmp_path, gpus=False)
    alone = meter.sample()["system/training_memory_megabytes"]
    code = BURN + "\nprint(flush=True); block = bytearray(60 * 2**20); block[::4096] = b'x' * len(block[::4096])\n"
    code += "print(flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    child.stdout.readline()
    child.stdout.readline()
    together = meter.sample()["system/training_memory_megabytes"]
    living = meter.total()
    child.communicate(b"\n")
    assert together > alone + 50
    assert living.cpu_seconds >= 0.3
    assert meter.total().cpu_seconds >= living.cpu_seconds
    assert meter.total().peak_memory_mb >= together


def test_tries_add_up(tmp_path):
    """A try that follows one that was killed goes on from what that one had measured."""
    first = Meter(tmp_path, gpus=False)
    subprocess.run([sys.executable, "-c", BURN], check=True)
    first.sample()
    second = Meter(tmp_path, gpus=False).total()
    assert second.tries == 2
    assert second.cpu_seconds >= 0.3
    assert second.wall_seconds >= 0.3


def test_money_is_hours_times_price():
    """Processor hours cost without GPUs, held GPUs' hours with them, and without a price nothing is said."""
    usage = Usage(cpu_seconds=7200, wall_seconds=3600)
    assert money(usage, 0.5, 0) == 1.0
    assert money(usage, 3.0, 2) == 6.0
    assert money(usage, None, 0) is None
