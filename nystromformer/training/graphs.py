"""Forward and backward passes of micro-batches as CUDA graphs: launched as one, not kernel by kernel.

A small model's kernels end before the CPU has launched the next ones, and the GPU waits. Recorded once for
each shape of a micro-batch, they are replayed from then on by a single launch. What is recorded computes on
the tensors that it was recorded with: inputs are copied there, and gradients are added up in place, in
tensors that stay. (Graphs by torch.compile's own mode return gradients in memory that the next replay
overwrites, so that of several micro-batches the first one's count alone: pytorch/pytorch#169545.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nystromformer.data.layout import Batch

Pass = Callable[[Batch, Tensor], Tensor]
"""Of a micro-batch on the device, and its share of each loss's mean: its share of each loss; the gradients
are added to the parameters'."""
Replay = Callable[[], object]
Recorder = Callable[[Callable[[], Tensor]], tuple[Replay, Tensor]]
"""Records a computation: what computes it again, and the tensor that then holds its result."""
WARM_UPS = 3
"""Before a recording: kernels are compiled and loaded, and libraries take their memory."""


@dataclass
class _Recorded:
    batch: Batch
    weights: Tensor
    replay: Replay
    shares: Tensor

    def __call__(self, batch: Batch, weights: Tensor) -> Tensor:
        for name, x in batch.items():
            self.batch[name].copy_(x, non_blocking=True)
        self.weights.copy_(weights, non_blocking=True)
        self.replay()
        return self.shares.clone()  # another shape's replay may use its memory


class Graphs:
    """A recording for each shape of micro-batches that has been met.

    Gradients must not be set to None meanwhile, but to 0.

    Args:
        parameters: whose gradients a pass adds to.
        device: of all tensors.
        recorder: a CUDA graph's, unless something stands for it.
    """

    def __init__(
        self, parameters: list[torch.nn.Parameter], device: torch.device, recorder: Recorder | None = None
    ) -> None:
        self._parameters, self._device = parameters, device
        self._recorder = recorder or CudaRecorder()
        self._recorded: dict[object, _Recorded] = {}

    def __call__(self, compute: Pass, batch: Batch, weights: Tensor) -> Tensor:
        """`compute(batch, weights)`; of a shape that was met before by replaying what it did then."""
        shape = tuple((name, x.shape, x.dtype) for name, x in sorted(batch.items()))
        if shape not in self._recorded:
            self._recorded[shape] = self._record(compute, batch, weights)
        return self._recorded[shape](batch, weights)

    def _record(self, compute: Pass, batch: Batch, weights: Tensor) -> _Recorded:
        own_batch, own_weights = {name: x.clone() for name, x in batch.items()}, weights.clone()
        devices = [self._device] if self._device.type == "cuda" else []
        # A resumed run records anew: neither random numbers nor gradients may tell.
        with torch.random.fork_rng(devices), self._kept_gradients():
            replay, shares = self._recorder(lambda: compute(own_batch, own_weights))
        return _Recorded(own_batch, own_weights, replay, shares)

    @contextlib.contextmanager
    def _kept_gradients(self) -> Iterator[None]:
        """What was added up before is there afterwards, in the tensors that are added to from now on."""
        before = [None if p.grad is None else p.grad.clone() for p in self._parameters]
        yield
        for parameter, gradient in zip(self._parameters, before, strict=True):
            if parameter.grad is None:
                continue
            if gradient is None:
                parameter.grad.zero_()
            else:
                parameter.grad.copy_(gradient)


class CudaRecorder:
    """Records CUDA graphs, which share the memory of what they compute meanwhile: only one runs at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        # As PyTorch's manual has it ("Whole-network capture"): on a stream of its own first.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                compute()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.empty_cache()  # a recording cannot use what the warm-up leaves
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on meanwhile: the loader's asks for pinned memory.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            shares = compute()
        return graph.replay, shares
