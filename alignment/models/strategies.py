"""Lightning strategies, as the hardware group uses them."""

from __future__ import annotations

from lightning.pytorch.strategies import ModelParallelStrategy


class FSDP2Strategy(ModelParallelStrategy):
    """FSDP2 over all devices of all nodes; checkpoints are written shard by shard.

    Lightning's own default puts the devices of a node into tensor parallelism, which no model here declares.
    """

    def __init__(self) -> None:
        super().__init__(data_parallel_size=1, tensor_parallel_size=1, save_distributed_checkpoint=True)

    def setup_environment(self) -> None:
        """Sizes the mesh once the number of processes is known."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()
