"""Limits how far Ray Data works ahead of training: by a number of blocks, where Ray itself counts bytes.

Bytes alone do not limit this stream. Tickets, the numbers of blocks to decode, are so small that Ray would make all of them at
once: 3 M of them take 10 GB in the process that makes them. And Ray's limit for decoded blocks is half of all object stores,
more than a slow trainer will ever need. This is a file of its own because it uses parts of Ray that are not public. Tasks
import it, so it does without torch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import ray
import ray.data
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
    BackpressurePolicy,
    ResourceBudgetBackpressurePolicy,
)
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.operators.map_operator import MapOperator

TICKETS = 256
"""The most tickets that wait to be decoded: more than any node has cores, so that no core idles."""
ROUND_SECONDS = 0.05
"""The shortest time that a round of Ray's scheduling loop takes."""
KEPT_STATISTICS = 100
"""For how many of the newest blocks of each operator statistics are kept. Ray keeps 3 KB for every block, which are 3 GB
in a run of a million blocks."""
_AHEAD = "actnetformer.blocks_ahead"
_FIRST = "actnetformer.first_tasks"


def make_tickets(span: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the block numbers ``first`` .. ``last`` - 1 of a span, one ticket each."""
    for number in range(int(span["first"][0]), int(span["last"][0])):
        yield {"block": np.array([number])}


def _find_maps(topology: Any) -> tuple[Any, Any]:
    """Finds the operators that make tickets and that decode."""
    tickets, decode, *_ = [op for op in topology if isinstance(op, MapOperator)]
    return tickets, decode


class BlockCount(BackpressurePolicy):  # type: ignore[misc]
    """Holds back new tickets while ``TICKETS`` wait, and new decode tasks while ``blocks_ahead`` decoded blocks wait.

    Until the first block is decoded, only one decode task runs for each CPU: more of them would only delay that block.
    """

    def can_add_input(self, op: Any) -> bool:
        """Returns whether a task of this operator may start; Ray calls it."""
        tickets, decode = _find_maps(self._topology)
        if op is tickets:
            return self._num_tickets(decode) < TICKETS
        if op is not decode:
            return True
        starting = decode.metrics.num_task_outputs_generated == 0
        if starting and decode.num_active_tasks() >= self._data_context.get_config(_FIRST):
            return False
        return self._num_decoded(decode) < int(self._data_context.get_config(_AHEAD))

    def max_task_output_bytes_to_read(self, op: Any) -> int | None:
        """Returns 0 to pause the task that makes tickets, or None for no limit; Ray calls it."""
        tickets, decode = _find_maps(self._topology)
        return 0 if op is tickets and self._num_tickets(decode) >= TICKETS else None

    def _num_tickets(self, decode: Any) -> int:
        return int(self._topology[decode].total_enqueued_input_blocks())

    def _num_decoded(self, decode: Any) -> int:
        """Counts the decoded blocks that nobody has taken yet, in Ray's queues from the decode tasks on."""
        waiting = self._topology[decode].total_enqueued_output_blocks()
        for op in decode.output_dependencies:  # streaming_split, or actors that score
            waiting += op.internal_input_queue_num_blocks()
            if not isinstance(op, MapOperator):
                waiting += self._topology[op].total_enqueued_output_blocks()
        return int(waiting)


class BudgetOfOneTask(ResourceBudgetBackpressurePolicy):  # type: ignore[misc]
    """Ray's budget, except that one decode task may always start; it waits for the CPUs that it reserves all the same.

    Ray 2.60 counts what train workers leave of each machine in whole CPUs, and may find none where decode tasks would fit
    (docs/measurements.md). What it does then to keep a dataset going, it does only while no task runs, and the one that makes
    tickets runs nearly always.
    """

    def can_add_input(self, op: Any) -> bool:
        """Returns whether a task of this operator may start; Ray calls it."""
        _, decode = _find_maps(self._topology)
        return (op is decode and decode.num_active_tasks() == 0) or bool(super().can_add_input(op))


class SlowerLoop(ExecutionCallback):  # type: ignore[misc]
    """Keeps Ray's scheduling loop from spinning, and its statistics of blocks from growing with the run.

    The loop sleeps until a task has output, a tenth of a second at most. The task that makes tickets has output as long as
    nobody reads it. When enough decoded blocks wait it is the only task, and the loop used half a core.
    """

    def __init__(self) -> None:
        self._last = 0.0

    def on_execution_step(self, executor: Any) -> None:
        """Sleeps and deletes old statistics; Ray calls it in each round of its loop."""
        time.sleep(max(0.0, self._last + ROUND_SECONDS - time.monotonic()))
        self._last = time.monotonic()
        for op in executor._topology:
            if isinstance(op, MapOperator) and len(op._output_blocks_stats) > 2 * KEPT_STATISTICS:
                del op._output_blocks_stats[:-KEPT_STATISTICS]


def limit_blocks_ahead(dataset: ray.data.Dataset, blocks_ahead: int) -> None:
    """Sets the limits on a dataset whose first two maps make tickets and decode, and turns off what costs time per block."""
    context = dataset.context
    context.target_max_block_size = 1  # bytes: every row becomes a block of its own, as soon as it is there
    policies = [policy for policy in ENABLED_BACKPRESSURE_POLICIES if policy is not ResourceBudgetBackpressurePolicy]
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, [*policies, BudgetOfOneTask, BlockCount])
    context.set_config(_AHEAD, blocks_ahead)
    context.set_config(_FIRST, max(1, int(ray.cluster_resources().get("CPU", 1))))
    context.execution_options.preserve_order = True
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, SlowerLoop]
    context.raise_original_map_exception = True  # Ray's own arrives without its cause, a UserError
    context.enable_progress_bars = False  # ours has rate and time left; Ray counts tickets
    context.memory_usage_poll_interval_s = None  # a thread in each task that reads /proc
    context.issue_detectors_config.detectors = []  # they advise on memory of single tasks
