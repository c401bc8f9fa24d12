import json

import pytest

from recon_core.priors.card import Card, Source

CARD = Card(
    summary="Heads, 2D.",
    licence="CC BY 4.0",
    sources=(
        Source("Heads of town", "CC0", "Somebody et al., J Heads 2020"),
        Source("An average head", "permissive", "Nobody, 2011"),
    ),
    objective="sure",
    steps=4500,
    seed=3,
    command="spinstream train unet --data heads --objective sure",
    metrics={"PSNR at sigma 0.1, dB": 34.5678, "calibration at sigma 0.1": 1.001},
    limits="Not for knees: méniscus.",
    denoiser="unet; noise 0.01 to 160 of the percentile99",
)


def test_a_card_comes_back_as_it_was():
    assert Card.from_json(CARD.to_json()) == CARD
    assert Card.from_json(Card("Nothing else.").to_json()) == Card("Nothing else.")
    assert Card.from_json('{"summary": "Of an earlier version.", "sources": []}') == Card("Of an earlier version.")


def test_the_text_is_json_with_the_names_of_the_entries():
    entries = json.loads(CARD.to_json())
    assert entries["sources"][0]["licence"] == "CC0"
    assert set(entries) == {
        *("summary", "licence", "sources", "objective", "steps", "seed", "command", "metrics", "limits", "denoiser")
    }


def test_the_page_tells_everything():
    page = CARD.to_markdown("unet_head")
    assert page.startswith("# unet_head\n\nHeads, 2D.\n")
    for part in (
        "Licence of the weights: CC BY 4.0",
        "* Heads of town (CC0). Somebody et al., J Heads 2020",
        "* An average head (permissive). Nobody, 2011",
        "Objective sure, 4500 steps, seed 3.",
        "\n    spinstream train unet --data heads --objective sure\n",
        "| PSNR at sigma 0.1, dB | 34.57 |",
        "| calibration at sigma 0.1 | 1.001 |",
        "Limits: Not for knees: méniscus.",
        "Denoiser: unet; noise 0.01 to 160 of the percentile99\n",
    ):
        assert part in page


def test_the_page_is_silent_about_what_is_not_known():
    page = Card("Heads.").to_markdown("mine")
    assert "Licence of the weights: not stated" in page
    assert "held-out" not in page
    assert "Limits" not in page
    assert "Denoiser" not in page
    assert "\nLearnt from: not stated\n" in page


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("[]", "'str' object"),
        ('"a text"', "pop"),
        ("{}", "'sources'"),
        ('{"sources": []}', "'summary'"),
        ('{"sources": 3, "summary": "x"}', "not iterable"),
        ('{"sources": [{"name": "heads"}], "summary": "x"}', "'licence' and 'citation'"),
        ('{"sources": [], "summary": "x", "colour": "red"}', "'colour'"),
    ],
)
def test_texts_that_are_no_card_are_refused(text, reason):
    with pytest.raises(
        ValueError, match=f"expected a model card with summary, licence, sources, .*denoiser: .*{reason}"
    ):
        Card.from_json(text)
