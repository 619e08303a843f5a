"""What messages say beside the mistake itself."""

from __future__ import annotations

from pipeline.errors import find_nearest_name, list_first, suggest

NAMES = ("frame_rates", "thresholds", "labels")


def test_the_name_that_was_probably_meant_is_suggested() -> None:
    assert suggest("frame_rate", NAMES) == "; did you mean frame_rates?"
    assert suggest("treshold", iter(NAMES)) == "; did you mean thresholds?"


def test_nothing_is_suggested_where_no_name_is_similar() -> None:
    assert suggest("optimizer", NAMES) == "" == suggest("labels", [])
    assert find_nearest_name("label_of", NAMES) == "labels"
    assert find_nearest_name("label_of", NAMES, cutoff=0.9) is None


def test_of_many_mistakes_twenty_are_listed_and_the_rest_is_counted() -> None:
    names = [str(number) for number in range(23)]
    assert list_first(names) == [*names[:20], "and 3 more"]
    assert list_first(names[:20]) == names[:20]
