from pipelines.streams.turns import Turns


class Line:
    """Writes down whose turn it was."""

    def __init__(self, places: int | None) -> None:
        self.turns = Turns(places)
        self.had: list[str] = []

    def ask(self, *names: str) -> None:
        for name in names:
            self.turns.ask(name, lambda name=name: self.had.append(name))

    def end(self, name: str) -> list[str]:
        self.turns.end(name)
        return self.had


def test_turns_come_in_the_order_of_asking():
    line = Line(1)
    line.ask("a", "b", "c")
    assert line.had == ["a"]
    assert line.end("a") == ["a", "b"]


def test_who_computes_frame_after_frame_waits_for_all_others_each_time():
    line = Line(1)
    line.ask("a", "b", "c")
    for name in ("a", "b", "c"):
        line.end(name)
        line.ask(name)
    assert line.had == ["a", "b", "c", "a"]


def test_as_many_as_there_are_places_have_their_turn_at_once():
    line = Line(2)
    line.ask("a", "b", "c", "d")
    assert line.had == ["a", "b"]
    assert line.end("b") == ["a", "b", "c"]


def test_without_a_bound_nobody_waits():
    line = Line(None)
    line.ask("a", "b", "c")
    assert line.had == ["a", "b", "c"]


def test_one_that_died_gives_its_turn_back_and_leaves_the_line():
    line = Line(1)
    line.ask("a", "b", "c")
    line.end("b")
    assert line.end("a") == ["a", "c"]
    assert line.end("a") == ["a", "c"]
