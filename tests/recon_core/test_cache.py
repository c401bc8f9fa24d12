"""The cache keeps what it should, builds it once, and holds no more than its limit."""

import math
import threading
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from recon_core.cache import ContentCache, content_key


@dataclass
class Thing:
    nbytes: int


class Builder:
    """Counts what it is asked for."""

    def __init__(self, cache):
        self.cache = cache
        self.built = []

    def __call__(self, name, nbytes=10):
        def build():
            self.built.append(name)
            return Thing(nbytes)

        return self.cache.get(name.encode(), build)


def in_threads(number, work):
    threads = [threading.Thread(target=work, args=(i,)) for i in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_each_key_is_built_once():
    get = Builder(ContentCache(100))
    assert get("a") is get("a")
    assert get("a") is not get("b")
    assert get.built == ["a", "b"]


def test_the_least_recently_used_goes_first():
    get = Builder(ContentCache(30))
    for name in "abcabd":
        get(name)
    assert get.cache.nbytes == 30
    get("a"), get("b"), get("d")
    assert get.built == [*"abcd"]
    get("c")
    assert get.built == [*"abcdc"]


def test_what_is_larger_than_the_limit_is_given_but_not_kept():
    get = Builder(ContentCache(30))
    get("a"), get("b")
    assert get("large", 31).nbytes == 31
    get("large", 31), get("a"), get("b")
    assert get.built == ["a", "b", "large", "large"]


def test_what_grows_is_counted_as_it_is_now():
    get = Builder(ContentCache(30))
    first, _ = get("a"), get("b")
    first.nbytes = 25
    assert get.cache.nbytes == 35
    get("b")
    assert get.cache.nbytes == 10
    get("a").nbytes = 100
    get("b")
    assert get.cache.nbytes == 10
    assert get.built == ["a", "b", "a"]


def test_tensors_are_entries_as_they_are():
    cache = ContentCache(1000)
    assert cache.get(b"weights", lambda: torch.zeros(100)).shape == (100,)
    assert cache.nbytes == 400


def test_what_fails_is_tried_again():
    cache = ContentCache(100)
    for message in ("first", "second"):
        with pytest.raises(ValueError, match=message):
            cache.get(b"a", lambda message=message: (_ for _ in ()).throw(ValueError(message)))
    assert cache.get(b"a", lambda: Thing(1)).nbytes == 1


def test_what_fails_in_one_thread_is_tried_by_those_that_waited():
    cache, started, release = ContentCache(100), threading.Event(), threading.Event()
    outcomes = {}

    def fails():
        started.set()
        release.wait(5)
        raise ValueError("failed")

    def work(i):
        try:
            if i:
                started.wait(5)
            outcomes[i] = cache.get(b"a", (lambda: Thing(7)) if i else fails)
        except ValueError as error:
            outcomes[i] = error

    threading.Timer(0.1, release.set).start()
    in_threads(3, work)
    assert str(outcomes[0]) == "failed"
    assert outcomes[1] is outcomes[2]
    assert outcomes[1].nbytes == 7


def test_one_of_many_threads_builds():
    cache, built = ContentCache(100), []
    gate = threading.Barrier(8)
    results = [None] * 8

    def slow():
        built.append(threading.current_thread())
        threading.Event().wait(0.05)
        return Thing(1)

    def work(i):
        gate.wait(5)
        results[i] = cache.get(b"a", slow)

    in_threads(8, work)
    assert len(built) == 1
    assert all(result is results[0] for result in results)


def test_other_keys_do_not_wait():
    cache, meeting = ContentCache(100), threading.Barrier(2)

    def build():
        meeting.wait(5)  # breaks unless both build at the same time
        return Thing(1)

    results = []
    in_threads(2, lambda i: results.append(cache.get(bytes([i]), build)))
    assert len(results) == 2


def test_what_is_built_may_need_the_cache():
    cache = ContentCache(100)
    outer = cache.get(b"outer", lambda: Thing(cache.get(b"inner", lambda: Thing(3)).nbytes + 1))
    assert outer.nbytes == 4
    assert cache.nbytes == 7


def test_many_threads_leave_no_more_than_the_limit():
    cache = ContentCache(50)

    def work(i):
        draw = np.random.default_rng(i)
        for name in draw.integers(0, 12, 300):
            assert cache.get(bytes([name]), lambda name=name: Thing(5 + int(name))).nbytes == 5 + name

    in_threads(6, work)
    assert 0 < cache.nbytes <= 50


X = torch.arange(6, dtype=torch.float32)
DIFFERENT = [
    (),
    (X,),
    (X, X),
    ((X, X),),
    (X.view(2, 3),),
    (X.view(3, 2),),
    (X.double(),),
    (X.view(torch.int32),),
    (X + 1e-6,),
    (X[:3], X[3:]),
    (X[:2], X[2:]),
    (X.flip(0),),
    ("ab", "c"),
    ("a", "bc"),
    ("abc",),
    (b"abc",),
    (("a", "b"), "c"),
    ("a", ("b", "c")),
    (1,),
    (1.0,),
    (True,),
    ("1",),
    (None,),
    ("None",),
    (12, 3),
    (1, 23),
    (0.1,),
    (math.nextafter(0.1, 1),),
    (X[:0],),
    ((),),
    ((), ()),
]


def test_different_inputs_have_different_keys():
    assert len({content_key(*parts) for parts in DIFFERENT}) == len(DIFFERENT)


def test_equal_content_has_one_key_however_it_lies_in_memory():
    x = torch.arange(12.0).view(3, 4)
    assert content_key(x.T, "a", 1.5) == content_key(x.T.contiguous(), "a", 1.5)
    assert content_key(torch.arange(24.0)[::2]) == content_key(torch.arange(0, 24.0, 2))
    z = torch.complex(x, x + 1)
    assert content_key(z.conj()) == content_key(z.conj().resolve_conj())
    assert content_key(z.conj()) != content_key(z)
    assert content_key(torch.tensor(2.0)) != content_key(torch.tensor([2.0]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_devices_have_keys_of_their_own():
    assert content_key(X) != content_key(X.cuda())
    assert content_key(X.cuda()) == content_key(X.cuda())


def test_what_has_no_known_content_is_refused():
    with pytest.raises(TypeError, match="tuples of these as a key, got list"):
        content_key("a", [1, 2])
