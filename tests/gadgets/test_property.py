import pytest

from gadgets.property import Property, PropertyError, choice, flag, integer, known_or_path, path, real, text

EVERY_KIND = [
    (real(0.5, "weight", unit="Hz", low=0, high=1), "a number from 0 to 1 in Hz", "0.5"),
    (real(None, "limit", low=2), 'a number of at least 2, or "auto"', "auto"),
    (integer(3, "count", high=9), "a whole number of at most 9", "3"),
    (flag(True, "whether"), "true or false", "true"),
    (choice("a", ["a", "b"], "which"), "one of a, b", "a"),
    (text("x", "what"), "text", "x"),
    (path(None, "where"), 'a path, or "auto"', "auto"),
    (known_or_path("a", ["a", "b"], "which"), "a, b, or a path", "a"),
]


@pytest.mark.parametrize(
    ("declared", "expected", "default"), EVERY_KIND, ids=lambda value: getattr(value, "kind", None)
)
def test_what_is_expected_and_the_default_are_said_in_words(declared, expected, default):
    assert declared.expected == expected
    assert declared.default_text == default
    assert declared.parse(default) == declared.default


def test_a_property_reads_as_its_value_on_an_instance_and_as_itself_on_the_class():
    class Owner:
        weight = real(0.5, "weight")

    owner = Owner()
    assert owner.weight == 0.5
    vars(owner)["weight"] = 2.0
    assert owner.weight == 2.0
    assert isinstance(Owner.weight, Property)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("a", "a"),
        ("~/mine.safetensors", "/home/me/mine.safetensors"),
        ("ncsnv2:~/checkpoint.pth", "ncsnv2:/home/me/checkpoint.pth"),
        ("pogmdm:/data/state~1.pth", "pogmdm:/data/state~1.pth"),
        ("./a", "./a"),
    ],
)
def test_a_file_may_lie_at_home(monkeypatch, word, value):
    monkeypatch.setenv("HOME", "/home/me")
    assert known_or_path("a", ["a"], "which").parse(word) == value


@pytest.mark.parametrize("declared", [path(None, "where"), known_or_path("a", ["a"], "which")])
def test_a_home_of_nobody_is_refused(declared):
    with pytest.raises(PropertyError, match="path.*got '~no such user/x'"):
        declared.parse("~no such user/x")


@pytest.mark.parametrize("word", ["", "ncsnv2:"])
def test_a_file_has_a_name(word):
    with pytest.raises(PropertyError, match="a, or a path"):
        known_or_path("a", ["a"], "which").parse(word)


@pytest.mark.parametrize("word", ["inf", "-inf", "nan", "", "1,5", "0x10"])
def test_numbers_are_finite_and_plain(word):
    with pytest.raises(PropertyError, match="expected a number"):
        real(0.0, "weight").parse(word)


@pytest.mark.parametrize(("word", "value"), [("TRUE", True), ("1", True), ("off", False), (" no ", False)])
def test_flags_take_the_usual_words(word, value):
    assert flag(not value, "whether").parse(word) is value
