"""What the terminal shows of a line of metrics."""

from __future__ import annotations

from pipeline.training.monitoring.metric_line import format_line

LINE = {"step": 20, "loss": 1.5, "seconds/data": 0.1, "seconds/step": 1.0, "clips_per_second": 36, "quarantined": 0}


def test_a_line_names_who_labels_for_whom() -> None:
    labels = {
        "mask_rate/primary_to_auxiliary": 0.35, "pseudo_label_accuracy/primary_to_auxiliary": 0.62,
        "mask_rate/auxiliary_to_primary": 0.0, "pseudo_label_accuracy/auxiliary_to_primary": None,
    }  # fmt: skip
    said = "pseudo-labels: primary to auxiliary 35% (62% right), auxiliary to primary 0%"
    expected = f"step 20/90  loss 1.500  {said}  36 videos/s  data wait 10%  1:05 left"
    assert format_line(LINE | labels | {"eta_seconds": 65.2}, 90) == expected


def test_a_line_without_pseudo_labels_tells_of_failed_decodes() -> None:
    line = format_line(LINE | {"quarantined": 2, "eta_seconds": 5}, 90)
    assert line == "step 20/90  loss 1.500  36 videos/s  data wait 10%  2 decodes failed  0:05 left"
