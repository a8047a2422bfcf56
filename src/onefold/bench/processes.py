"""Several processes that measure together, as torchrun or accelerate launch start them."""

from __future__ import annotations

from typing import TypeVar

from onefold.progress import process_rank

Part = TypeVar("Part")


class Processes:
    """Each draws its share of the images; the first one writes. One process alone needs nothing."""

    def __init__(self, device: str = "auto") -> None:
        self.rank, self.world = 0, 1
        if process_rank() is None:
            return
        from accelerate import PartialState

        state = PartialState(cpu=device == "cpu")
        self.rank, self.world = state.process_index, state.num_processes

    @property
    def first(self) -> bool:
        return self.rank == 0

    def everyone(self, part: Part) -> list[Part]:
        """The parts of all processes, in every process."""
        if self.world == 1:
            return [part]
        from accelerate.utils import gather_object

        return list(gather_object([part]))

    def agree(self, value: Part) -> Part:
        """The first one's, in every process: what each found out by itself may differ in the last bit, or by its disk."""
        return self.everyone(value)[0]

    def wait(self) -> None:
        if self.world > 1:
            from accelerate.utils import wait_for_everyone

            wait_for_everyone()
