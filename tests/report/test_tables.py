"""Numbers as people read them."""

from hf_compress.report.tables import human_bytes, human_count


def test_amounts_are_short_whatever_they_are():
    assert [human_count(n) for n in (853018, 40_550_000, 999, 116.57329597)] == ["853 k", "40.55 M", "999", "116.6"]
    assert [human_bytes(n) for n in (3434552, 866_000, 12, 644.6332290)] == ["3.43 MB", "866 kB", "12 B", "645 B"]
