"""Every promise about a fault has a test, and a test that shows what would be without its defence."""

from tests.rig.fault_rows import marked, rows


def test_every_row_is_held_by_a_test_of_the_default_run() -> None:
    held = {each.row for each in marked() if each.holds and not each.slow}

    assert rows().keys() - held == set()


def test_for_every_row_the_defence_is_taken_out_once_and_missed() -> None:
    removed = {each.row for each in marked() if each.removes and not each.slow}

    assert rows().keys() - removed == set()


def test_every_mark_speaks_of_a_row_of_the_table() -> None:
    assert {each.row for each in marked()} - rows().keys() == set()
