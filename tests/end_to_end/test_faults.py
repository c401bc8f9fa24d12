"""The campaign of faults, in full as slow tests; a few cases of it always."""

import pytest

from benchmarks.faults import campaign

pytest.importorskip("gadgetron")


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> campaign.Bench:
    return campaign.prepared(tmp_path_factory.mktemp("bench"))


@pytest.mark.parametrize("fault", ["Dies", "Hangs"])
def test_gadgetron_hears_what_became_of_its_child_and_the_data_replay(bench, tmp_path, fault):
    """Gadgetron itself would report an illegal message for the one, and wait for ever for the other."""
    recordings = tmp_path / "recordings"
    environment = bench.environment | {"SPINSTREAM_RECORD": str(recordings), "SPINSTREAM_WORK_LIMIT": "2"}
    heard, status = campaign.run_child(bench, campaign.chain_with("CgSense", fault), environment)
    assert status == 0
    assert campaign.REASONS[fault] in heard
    assert f"{fault}CgSense was at work on slice 0" in heard
    recording = campaign.newest(recordings, set())
    assert recording is not None
    assert campaign.same(bench.replayed(recording), bench.images)


@pytest.mark.slow
@pytest.mark.parametrize("cases", [campaign.gadgets, campaign.gadgetron, campaign.cuts, campaign.others])
def test_every_fault_is_told_hurts_nobody_else_and_loses_nothing(bench, cases):
    verdicts = list(cases(bench))
    assert verdicts
    assert [verdict for verdict in verdicts if not verdict.good] == []
