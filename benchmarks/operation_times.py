"""Where the time of training steps goes, by kinds of operations, in any system that runs on PyTorch."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

#: Names of PyTorch's operations begin with one of these.
KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "mkldnn", "linear"),
    "attention": ("_scaled_dot_product", "_flash", "_efficient"),
    "softmax and its sums": ("exp", "log", "_log_softmax", "_softmax", "logsumexp", "amax", "max", "sum", "nll"),
    "optimiser and clipping": ("_fused", "_foreach", "linalg_vector_norm", "addcmul", "addcdiv", "lerp", "sqrt"),
    "single numbers": ("mul", "add", "sub", "div", "neg", "rsqrt", "pow", "mean", "silu", "sigmoid", "where", "tanh"),
    "copies": ("copy", "cat", "index", "gather", "scatter", "select", "slice", "embedding", "clone", "_to_copy"),
    "zeros": ("zero", "fill", "zeros", "full", "new_zeros"),
}
OTHER = "everything else"


def kind_of(name: str) -> str:
    """Returns the kind of an operation by the profiler's name of it.

    >>> kind_of("aten::addmm"), kind_of("aten::_log_softmax_backward_data"), kind_of("Optimizer.step#AdamW.step")
    ('matrix products', 'softmax and its sums', 'everything else')
    """
    bare = name.removeprefix("aten::")
    for kind, beginnings in KINDS.items():
        if name.startswith("aten::") and bare.startswith(beginnings):
            return kind
    return OTHER


class StepProfile:
    """Measures from the end of the first step to :meth:`seconds`: processor time of operations, by kind."""

    def __init__(self) -> None:
        self._profile: Any = None

    def start(self) -> None:
        """Begins, at the first call."""
        if self._profile is None:
            from torch.profiler import ProfilerActivity, profile

            self._profile = profile(activities=[ProfilerActivity.CPU])
            self._profile.start()

    def seconds(self) -> dict[str, float]:
        """Ends, and returns what each kind took."""
        assert self._profile is not None
        self._profile.stop()
        found: dict[str, float] = defaultdict(float)
        for event in self._profile.key_averages():
            found[kind_of(event.key)] += event.self_cpu_time_total / 1e6
        return dict(found)
