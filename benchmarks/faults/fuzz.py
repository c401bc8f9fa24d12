"""Hands damaged messages, documents and files to spinstream's readers, for hours if need be.

    python -m benchmarks.faults.fuzz --target wire [--seconds 60] [--seed 0] [--jobs 1] [--findings findings/]
    python -m benchmarks.faults.fuzz --target file --input findings/file-0-0-30.bin

An input that brings anything but a result or a SpinstreamError with a text, that takes longer than `LONGEST_S`, or more
memory than `MOST_BYTES`, is a finding; so is one at which the process dies. The first of its kind is stored, with its
reason beside it. Input N of job J is the same for the same seed; another seed goes on with other inputs.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import random
import resource
import signal
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from types import FrameType

import psutil

from benchmarks.faults.inputs import TARGETS, Target, mutated

LONGEST_S = 5.0
MOST_BYTES = 512 << 20
HANGS_S = 60.0
"""Without a step, however the alarm rang: some C code cannot be interrupted."""


class TooLong(BaseException):
    """Rung by the alarm; no handler of errors may catch it."""


@dataclass(frozen=True)
class Campaign:
    """What a job needs to make its inputs."""

    target: str
    seed: int
    job: int
    findings: Path

    def input(self, number: int, target: Target) -> bytes:
        """Input `number` of this job."""
        return mutated(random.Random(f"{self.seed}/{self.job}/{number}"), target)

    def store(self, number: int, raw: bytes, reason: str) -> None:
        """Keeps a finding."""
        self.findings.mkdir(parents=True, exist_ok=True)
        path = self.findings / f"{self.target}-{self.seed}-{self.job}-{number}.bin"
        path.write_bytes(raw)
        path.with_suffix(".txt").write_text(reason)
        print(f"{path}: {reason.strip().splitlines()[-1]}", flush=True)


@contextmanager
def bounded() -> Iterator[None]:
    """Rings after `LONGEST_S`."""
    signal.setitimer(signal.ITIMER_REAL, LONGEST_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _ring(number: int, frame: FrameType | None) -> None:
    raise TooLong(f"took more than {LONGEST_S:g} s")


def run(campaign: Campaign, first: int, until: float, done: Synchronized, valid: Synchronized) -> None:
    """A job: one input after another from `first` on."""
    logging.disable(logging.CRITICAL)
    target = TARGETS[campaign.target]()
    signal.signal(signal.SIGALRM, _ring)
    held = psutil.Process().memory_info().data
    resource.setrlimit(resource.RLIMIT_DATA, (held + MOST_BYTES, held + MOST_BYTES))
    seen: Counter[str] = Counter()
    number = first
    while time.monotonic() < until:
        done.value = number
        raw = campaign.input(number, target)
        try:
            with bounded():
                valid.value += target.takes(raw)
        except (Exception, TooLong) as error:
            kind = _kind(error)
            seen[kind] += 1
            if seen[kind] == 1:
                campaign.store(number, raw, "".join(traceback.format_exception(error)))
        number += 1
    done.value = number


def _kind(error: BaseException) -> str:
    """Errors of one type from one line are one finding; time can run out anywhere."""
    if isinstance(error, TooLong):
        return "too long"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} {frame.filename}:{frame.lineno}"


class Job:
    """A process that reads inputs, and a new one after each death."""

    def __init__(self, campaign: Campaign, seconds: float) -> None:
        self.campaign = campaign
        self.done, self.valid = multiprocessing.Value("Q", 0), multiprocessing.Value("Q", 0)
        self._until = time.monotonic() + seconds
        self._start(first=0)

    def runs(self) -> bool:
        """Whether it goes on; looks after its process."""
        if self.done.value != self._seen:
            self._seen, self._since = self.done.value, time.monotonic()
        elif time.monotonic() - self._since > HANGS_S:
            self._process.kill()
            self._process.join()
        if self._process.is_alive():
            return True
        if self._process.exitcode == 0:
            return False
        number = self.done.value
        raw = self.campaign.input(number, TARGETS[self.campaign.target]())
        self.campaign.store(number, raw, f"the process hung or died with status {self._process.exitcode}")
        self._start(first=number + 1)
        return True

    def _start(self, first: int) -> None:
        self._seen, self._since = first, time.monotonic()
        arguments = (self.campaign, first, self._until, self.done, self.valid)
        self._process = multiprocessing.Process(target=run, args=arguments)
        self._process.start()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=TARGETS, required=True)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--findings", type=Path, default=Path("findings"))
    parser.add_argument("--input", type=Path, help="read this one only")
    arguments = parser.parse_args()
    if arguments.input:
        print("valid" if TARGETS[arguments.target]().takes(arguments.input.read_bytes()) else "refused")
        return
    campaigns = [Campaign(arguments.target, arguments.seed, job, arguments.findings) for job in range(arguments.jobs)]
    began = time.monotonic()
    jobs = [Job(campaign, arguments.seconds) for campaign in campaigns]
    while sum(job.runs() for job in jobs):
        time.sleep(0.1)
    inputs, valid = sum(job.done.value for job in jobs), sum(job.valid.value for job in jobs)
    rate = inputs / (time.monotonic() - began)
    print(f"{arguments.target}: {inputs} inputs, {rate:.0f}/s, {valid / inputs:.1%} valid, seed {arguments.seed}")


if __name__ == "__main__":
    main()
