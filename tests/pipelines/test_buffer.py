import threading
import time

import pytest

from pipelines.streams.buffer import OVERHEAD, ItemBuffer

from mrd_items import acquisition

ITEM = acquisition(0)
BYTES = ITEM.data.nbytes + OVERHEAD


def in_thread(action) -> threading.Thread:
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    return thread


def test_items_come_out_in_order_and_end():
    buffer = ItemBuffer(10 * BYTES)
    for i in range(5):
        buffer.put(acquisition(i))
    buffer.end()
    assert [item.scan_counter for item in buffer] == [0, 1, 2, 3, 4]


def test_put_waits_while_the_buffer_is_full():
    buffer = ItemBuffer(2 * BYTES)
    put = []

    def produce():
        for i in range(4):
            buffer.put(acquisition(i))
            put.append(i)
        buffer.end()

    producer = in_thread(produce)
    time.sleep(0.05)
    assert put == [0, 1]
    items = iter(buffer)
    next(items)
    time.sleep(0.05)
    assert put == [0, 1, 2]
    assert len(list(items)) == 3
    producer.join(1)


def test_an_item_larger_than_the_bound_still_passes():
    buffer = ItemBuffer(1)
    producer = in_thread(lambda: (buffer.put(ITEM), buffer.put(ITEM), buffer.end()))
    assert len(list(buffer)) == 2
    producer.join(1)


def test_an_error_comes_after_what_was_accepted_before_it():
    buffer = ItemBuffer(10 * BYTES)
    buffer.put(ITEM)
    buffer.end(ValueError("broken"))
    items = iter(buffer)
    assert next(items) is ITEM
    with pytest.raises(ValueError, match="broken"):
        next(items)


def test_drop_frees_a_waiting_producer():
    buffer = ItemBuffer(BYTES)
    producer = in_thread(lambda: [buffer.put(ITEM) for _ in range(10)])
    time.sleep(0.02)
    assert producer.is_alive()
    buffer.drop()
    producer.join(1)
    assert not producer.is_alive()


def test_a_nudge_wakes_a_consumer_that_waits_and_comes_after_what_is_there():
    buffer = ItemBuffer(10 * BYTES)
    taken = iter(buffer)
    threading.Timer(0.02, buffer.nudge).start()
    assert next(taken) is None
    buffer.nudge()
    buffer.put(ITEM)
    assert next(taken) is ITEM
    assert next(taken) is None
    buffer.nudge()
    buffer.end()
    assert list(taken) == []
